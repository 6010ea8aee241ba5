"""The curate job: everything a user says about how a heap of images becomes a manifest."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from curation.aesthetic import AestheticConfig
from curation.buckets import BucketsConfig
from curation.captions import CaptionerConfig, CaptionPolicy, MetadataCaptions
from curation.clip import ClipConfig
from curation.duplicates import DuplicatesConfig
from curation.fetch import FetchConfig
from curation.filters import FilterConfig
from curation.groups import GroupsConfig
from curation.images import ImageConfig
from curation.manifest import OPTIONAL, Name
from curation.moving import MOST
from curation.observability import RunObservability
from curation.rights.config import RightsConfig
from curation.rights.licences import LicencesConfig
from curation.rights.lists import OptOutList
from curation.safety import SafetyConfig
from curation.sources import SourceConfig

# How fast and how patiently is fetched changes no row that was fetched.
_PACE = {
    *(
        "timeout_s",
        "total_timeout_s",
        "retries",
        "backoff_s",
        "max_retry_after_s",
        "connections",
        "per_host",
        "delay_s",
    ),
    *("bytes_in_flight", "dns_ttl_s", "contact"),
}


class CurateJob(BaseModel):
    """`kind: curate`: images in, a manifest out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["curate"] = "curate"
    name: Name = Field("curation", description="a short name; it stands in the manifest")
    source: SourceConfig = Field(description="where the inputs are listed")
    output: str = Field(description="folder, s3:// or gs:// prefix that manifests are published in")
    parent: str | None = Field(
        None, description="an older manifest: what it kept stays, and new copies of that are dropped"
    )
    fetch: FetchConfig = Field(FetchConfig(), description="how bytes are fetched, and what is refused")
    images: ImageConfig = Field(ImageConfig(), description="what is accepted as an image")
    image_size: int = Field(256, ge=8, le=4096, description="side of the training-size picture, in pixels")
    frames: int | None = Field(
        None,
        ge=2,
        le=MOST,
        description="frames that moving pictures are sampled to, evenly, as a strip of squares below each other; what "
        "has fewer is dropped as too_few_frames. null takes stills, and the first frame of what moves",
    )
    buckets: BucketsConfig | None = Field(
        None,
        description="shapes of one area that training-size pictures are cut to, instead of a square; without it,"
        " or with frames, they are image_size x image_size",
    )
    pictures: bool = Field(True, description="whether kept rows carry a picture to train on; false copies none at all")
    licences: LicencesConfig = Field(LicencesConfig(), description="which stated licences may be trained on")
    rights: RightsConfig = Field(RightsConfig(), description="signals that are asked for, and what their silence means")
    optout: tuple[OptOutList, ...] = Field((), description="lists of what must not be used")
    ledger: str | None = Field(
        None, description="takedown ledger, or a manifest's folder; null: $CLEANPLATE_LEDGER, else output's `takedowns`"
    )
    clip: ClipConfig | None = Field(
        ClipConfig(), description="the CLIP model of embeddings and scores; null for none, and then nothing to train on"
    )
    quality: tuple[str, ...] = Field((), description="measures of the pixels, see `curation.quality.MEASURES`")
    aesthetic: AestheticConfig | None = Field(None, description="an aesthetic head on CLIP's embeddings")
    filters: dict[str, FilterConfig] = Field({}, description="measure: the range it must lie in, and what else happens")
    safety: SafetyConfig = Field(SafetyConfig(), description="concepts and classifiers, and what they do")
    groups: GroupsConfig | None = Field(None, description="zero-shot groups that the report counts removals by")
    captions: tuple[CaptionerConfig, ...] = Field(
        (MetadataCaptions(),), description="captioners in order of preference"
    )
    caption_policy: CaptionPolicy = Field(CaptionPolicy(), description="which captions are good enough, and how many")
    duplicates: DuplicatesConfig = Field(DuplicatesConfig(), description="which copies count, and which of them stays")
    unit_size: int = Field(
        256, ge=1, le=100_000, description="inputs in a work unit, on average: what a crash can cost"
    )
    workers: int = Field(1, ge=1, description="actors that fetch, decode and (without scorers) run the models")
    cpus_per_worker: float = Field(1, gt=0, description="logical CPUs of a worker; also its CPU threads")
    scorers: int = Field(0, ge=0, description="actors of their own for the models; 0 leaves them to the workers")
    gpus_per_worker: float = Field(0, ge=0, description="GPUs, or a share of one, of each actor that runs the models")
    observability: RunObservability = Field(RunObservability(), description="how the run is watched")

    seed: int = Field(0, ge=0, description="of what is sampled: the embeddings that k-means is fitted to")

    @property
    def threads(self) -> int:
        """CPU threads of a worker."""
        return max(1, int(self.cpus_per_worker))

    @property
    def copies(self) -> DuplicatesConfig:
        """`duplicates`, with the job's seed where it names none of its own."""
        semantic = self.duplicates.semantic
        if semantic is None or semantic.seed is not None:
            return self.duplicates
        return self.duplicates.model_copy(update={"semantic": semantic.model_copy(update={"seed": self.seed})})

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of `manifest.OPTIONAL` that its manifest has."""
        of_sizes = ("image_width", "image_height")
        wanted = [name for name in OPTIONAL.names if name not in of_sizes] if self.frames is not None else []
        return (*wanted, *(of_sizes if self.buckets is not None else ()))

    def public(self) -> dict[str, Any]:
        """The job as it is put on record: without who watched its run, and what nodes cost."""
        return self.model_dump(mode="json", exclude={"observability"})

    def identity(self) -> dict[str, Any]:
        """What of the job the manifest's id depends on: not where things lie, nor how many hands do the work."""
        paths = {"path", "metadata"}
        found = self.model_dump(
            mode="json",
            exclude={
                "source": {*paths, "of"},
                "optout": {"__all__": {"path"}},
                "aesthetic": True,
                "fetch": _PACE,
                "duplicates": {"backend", "ray_above"},
                "clip": {"model", "weights", "device"},
                "rights": {"cache_hours"},
                **dict.fromkeys(
                    (
                        "output",
                        "parent",
                        "ledger",
                        "captions",
                        "workers",
                        "cpus_per_worker",
                        "scorers",
                        "gpus_per_worker",
                        "observability",
                    ),
                    True,
                ),
            },
        )
        # Fields that came later: a job that leaves them out is the job that it was.
        for name in ("frames", "buckets"):
            if found[name] is None:
                del found[name]
        if not found["source"].get("sequences"):
            found["source"].pop("sequences", None)
        found["source"].pop("outside", None)  # it is about where things lie
        return found
