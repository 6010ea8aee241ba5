"""The curate job: everything a user says about how a heap of images becomes a manifest."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from curation.captions import CaptionerConfig, MetadataCaptions
from curation.clip import ClipConfig
from curation.duplicates import DuplicatesConfig
from curation.fetch import FetchConfig
from curation.images import ImageConfig
from curation.manifest import Name
from curation.rights.licences import LicencesConfig
from curation.rights.lists import OptOutList
from curation.safety import SafetyConfig
from curation.sources import SourceConfig


class CurateJob(BaseModel):
    """`kind: curate`: images in, a manifest out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["curate"] = "curate"
    name: Name = Field("curation", description="a short name; it stands in the manifest")
    source: SourceConfig = Field(description="where the inputs are listed")
    output: str = Field(description="folder or s3:// prefix that manifests are published in")
    fetch: FetchConfig = Field(FetchConfig(), description="how bytes are fetched, and what is refused")
    images: ImageConfig = Field(ImageConfig(), description="what is accepted as an image")
    image_size: int = Field(256, ge=8, le=4096, description="side of the training-size picture, in pixels")
    licences: LicencesConfig = Field(LicencesConfig(), description="which stated licences may be trained on")
    optout: tuple[OptOutList, ...] = Field((), description="lists of what must not be used")
    duplicates: DuplicatesConfig = Field(DuplicatesConfig(), description="which copies count as duplicates")
    captions: tuple[CaptionerConfig, ...] = Field(
        (MetadataCaptions(),), description="captioners in order of preference; the first that has a caption writes it"
    )
    clip: ClipConfig = Field(ClipConfig(), description="the CLIP model of embeddings and safety scores")
    safety: SafetyConfig = Field(SafetyConfig(), description="zero-shot concepts that are scored, and what they do")
    unit_size: int = Field(256, ge=1, le=100_000, description="inputs in a work unit: what a crash can cost")
    workers: int = Field(1, ge=1, description="actors that fetch, decode and embed")
    cpus_per_worker: float = Field(1, gt=0, description="logical CPUs of an actor; also its CPU threads")
    gpus_per_worker: float = Field(0, ge=0, description="GPUs, or a fraction of one, of an actor")
    seed: int = Field(0, description="kept for jobs that sample; no stage of today draws a random number")

    @property
    def threads(self) -> int:
        """CPU threads of a worker."""
        return max(1, int(self.cpus_per_worker))

    def identity(self) -> dict[str, Any]:
        """What of the job the manifest's id depends on: not where things lie, nor how many hands do the work."""
        policy = self.model_dump(
            mode="json",
            exclude={
                "source": {"path", "metadata"},
                "optout": {"__all__": {"path"}},
                **dict.fromkeys(
                    ("output", "fetch", "clip", "workers", "cpus_per_worker", "gpus_per_worker", "unit_size"), True
                ),
            },
        )
        return {**policy, "unit_size": self.unit_size, "measurement": self.measurement()}

    def measurement(self) -> dict[str, Any]:
        """What of the job the stored measurements depend on: everything else is policy and is decided anew."""
        return {
            "fetch": self.fetch.model_dump(
                mode="json", exclude={"connections", "timeout_s", "total_timeout_s", "retries"}
            ),
            "images": self.images.model_dump(mode="json", exclude={"min_side"}),
            "image_size": self.image_size,
            "clip": [self.clip.name(), self.clip.precision, self.clip.batch_size],
            "concepts": sorted(self.safety.concepts),
            "threads": self.threads,  # sums in another order end in other bits
        }
