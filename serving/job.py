"""The serve job: everything a user says about how a registered model answers requests."""

from __future__ import annotations

import ipaddress
import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from curation.clip import ClipConfig
from curation.manifest import Name
from serving.admission import Limits, SamplingDefaults
from serving.autoscaling import AutoscalingConfig
from serving.identity import CredentialsConfig, WatermarkConfig
from serving.jobs import JobsConfig
from serving.keys import KeysConfig
from serving.nearness import AttributionConfig, NearCopiesConfig
from serving.observability import ObservabilityConfig
from serving.prompts.guard import PromptsConfig
from serving.records import RecordsConfig
from serving.rollout import RolloutConfig
from serving.safety import OutputSafety

SAMPLER = "sampler"
GATEWAY = "gateway"
"""The application's deployments."""

BackendName = Literal["onnx", "torch", "openvino", "tensorrt"]


class EngineConfig(BaseModel):
    """How a replica computes: what runs the network, and how requests share its forward passes."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    backend: Literal["auto", "onnx", "torch", "openvino", "tensorrt"] = Field(
        "auto", description="what runs the network; auto: ONNX Runtime on a CPU where it is installed, else torch"
    )
    precision: Literal["fp32", "bf16", "int8"] = Field(
        "fp32", description="bf16 with openvino; int8 with openvino or onnx, from an export that holds it"
    )
    compile: bool | None = Field(None, description="whether torch compiles the network; null: on a GPU")
    sharing: Literal["exact", "always"] = Field(
        "exact",
        description="when requests share forward passes: where a probe at the start finds the same bytes in any "
        "company, or always; answers say whether their bytes depend on nothing but the request",
    )
    max_rows: int = Field(
        16, ge=2, le=1024, description="rows of a forward pass at most; a picture with guidance takes two"
    )
    max_row_steps: int = Field(
        16_384, ge=1, description="rows times steps outstanding at a replica at most; beyond that, requests get a 429"
    )


class ServeJob(BaseModel):
    """`kind: serve`: a model version in the registry, answering on HTTP. Also the `args` of a Serve config file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["serve"] = "serve"
    name: Name = Field("cleanplate", description="the Ray Serve application's name")
    model: str = Field(description='"models:/NAME@alias", "models:/NAME/3", or a bundle\'s folder')
    tracking_uri: str | None = Field(None, description="where the MLflow registry is; null: MLflow's default")
    cache: str | None = Field(None, description="folder for downloaded bundles; null: the user's cache folder")
    takedowns: Literal["ignore", "warn", "refuse"] = Field(
        "warn",
        description="what to do with a version trained on what was taken down since: nothing, say so in the log and in "
        "/v1/models, or not serve it; refused is also what nobody examined for a newer entry, and what names a ledger "
        "that cannot be read",
    )
    ledger: str | None = Field(None, description="takedown ledger, a folder; null: the one that the training heeded")

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for every interface")
    port: int = Field(8000, ge=1, le=65_535, description="port to listen on")
    route_prefix: str = Field("/", pattern=r"^/([\w.-]+(/[\w.-]+)*)?$", description="path that the API is below")

    replicas: int = Field(
        1, ge=1, description="processes that hold the model; the requests of each share its forward passes"
    )
    cpus_per_replica: float = Field(1.0, gt=0, description="logical CPUs of a replica")
    gpus_per_replica: float = Field(0.0, ge=0, description="GPUs, or a fraction of one, of a replica; 0 samples on CPU")
    threads: int | None = Field(None, ge=1, description="CPU threads of a replica; null: cpus_per_replica, rounded up")

    limits: Limits = Field(Limits(), description="what one request may ask for at most")
    defaults: SamplingDefaults | None = Field(None, description="what a request does not say; null: the bundle's own")
    prompts: PromptsConfig = Field(PromptsConfig(), description="what may not be asked for")
    safety: OutputSafety = Field(
        OutputSafety(), description="what is looked for in finished pictures, and what is done"
    )
    clip: ClipConfig = Field(ClipConfig(), description="the CLIP model that looks at pictures and prompts")
    attribution: AttributionConfig = Field(
        AttributionConfig(), description="the training pictures that are named beside what is drawn"
    )
    near_copies: NearCopiesConfig | None = Field(
        None, description="what is done with near copies of training pictures; null: withheld, where there is an index"
    )

    keys: KeysConfig | Literal["open"] | None = Field(
        None, description="who may ask; null: anybody on this machine; open: anybody at all"
    )
    cors_origins: tuple[str, ...] = Field((), description="origins whose pages may ask from a browser; none")
    jobs: JobsConfig | None = Field(None, description="requests whose pictures are fetched later; null: none")
    records: RecordsConfig | None = Field(None, description="what is remembered of pictures; null: nothing")

    page: bool = Field(True, description="whether people find a page at the root: prompts, pictures, verification")

    engine: EngineConfig = Field(EngineConfig(), description="what runs the network, and how passes are shared")
    autoscaling: AutoscalingConfig | None = Field(
        None, description="replicas by what is to be drawn, in the place of `replicas`; null: as many as that says"
    )
    rollout: RolloutConfig = Field(RolloutConfig(), description="how replicas follow the alias while they serve")
    credentials: CredentialsConfig = Field(CredentialsConfig(), description="a signed statement in each picture's file")
    watermark: WatermarkConfig = Field(WatermarkConfig(), description="an invisible mark in each picture's pixels")
    max_queued_requests: int = Field(
        16, ge=0, description="requests at a replica beside the first one; one more is answered 429"
    )
    max_ongoing_requests: int = Field(
        256, ge=8, description="requests of every kind that the gateway holds open at once"
    )
    request_timeout_s: float = Field(120.0, gt=0, description="seconds until a request is given up with a 504")
    shutdown_s: float = Field(
        30.0,
        ge=0,
        description="seconds that requests and jobs under way have left when the server is told to end; jobs that have "
        "not begun, or are not done by then, have failed (`interrupted`) and begin anew when they are asked for again",
    )
    observability: ObservabilityConfig = Field(ObservabilityConfig(), description="logs, metrics and traces")

    @model_validator(mode="after")
    def _defaults_within_limits(self) -> ServeJob:
        if self.defaults is None:
            return self
        if self.defaults.steps > self.limits.max_steps:
            raise ValueError("defaults.steps is over limits.max_steps")
        if self.defaults.guidance_scale > self.limits.max_guidance_scale:
            raise ValueError("defaults.guidance_scale is over limits.max_guidance_scale")
        return self

    @model_validator(mode="after")
    def _not_open_by_mistake(self) -> ServeJob:
        if self.keys is None and not loopback(self.host):
            raise ValueError(
                f"host {self.host} is reached from other machines, and there are no keys: "
                "name their file in keys.file, or say keys: open"
            )
        return self

    @property
    def most_replicas(self) -> int:
        return self.replicas if self.autoscaling is None else self.autoscaling.max_replicas

    @property
    def cpu_threads(self) -> int:
        return self.threads or math.ceil(self.cpus_per_replica)

    @property
    def device(self) -> str:
        return "cuda" if self.gpus_per_replica > 0 else "cpu"

    @property
    def url(self) -> str:
        """Where a client on this machine reaches the API: what `/v1/…` is appended to."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}{self.route_prefix.rstrip('/')}"


def loopback(host: str) -> bool:
    """Whether a name or an address means this machine, and is reached from no other."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def plan(job: ServeJob) -> dict[str, Any]:
    """What `cleanplate serve --dry-run` prints beside the job: what Ray will be asked for, and where it will answer."""
    return {
        "url": f"{job.url}/v1/images/generations",
        "deployments": {
            GATEWAY: {"replicas": 1, "cpus": 0.0, "gpus": 0.0},
            SAMPLER: {
                "replicas": job.most_replicas,
                "cpus": job.cpus_per_replica,
                "gpus": job.gpus_per_replica,
                "threads": job.cpu_threads,
            },
        },
        "cpus": job.most_replicas * job.cpus_per_replica,
        "gpus": job.most_replicas * job.gpus_per_replica,
    }
