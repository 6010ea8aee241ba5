"""What the loop tells the outside while it runs."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import BaseModel, ConfigDict

from curation.events import Event


class Point(BaseModel):
    """What was measured up to a number of images seen, which is MLflow's step."""

    model_config = ConfigDict(frozen=True)
    images: int
    time: float
    values: dict[str, float]
    grid: str | None = None  # path or URI of a grid of pictures that was drawn at this point


class Leg(BaseModel):
    """From how many images on a run was trained at which topology."""

    model_config = ConfigDict(frozen=True)
    images: int
    topology: dict[str, int]


class Timing(BaseModel):
    """Where the first worker's time went since the point before.

    Attributes:
        data_share: of a step's time, in which its batch was made.
        cpu_seconds: of its process, since it began.
        workers: that train.
    """

    model_config = ConfigDict(frozen=True)
    step_seconds: float
    data_share: float
    cpu_seconds: float
    workers: int


Report = Callable[[Point], None]
Tell = Callable[[Timing | Event], None]


class Progress(BaseModel):
    """How far a run is."""

    model_config = ConfigDict(frozen=True)
    images_seen: int
    images_total: int
    images_per_second: float
    loss: float
    eta_seconds: float


def progress_of(point: Point, images_total: int) -> Progress | None:
    """The progress that a point tells of; None for one that carries only a grid."""
    if "loss" not in point.values:
        return None
    rate = point.values["images_per_second"]
    return Progress(
        images_seen=point.images,
        images_total=images_total,
        images_per_second=rate,
        loss=point.values["loss"],
        eta_seconds=(images_total - point.images) / rate if rate > 0 else 0.0,
    )
