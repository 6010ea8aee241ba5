"""What a run's folder remembers of it: its MLflow run, and what it came to."""

from __future__ import annotations

import json
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from curation import storage

RUN_FILE = "run.json"
RESULT_FILE = "result.json"
BEST_BUNDLE = "bundle_best"

_Result = TypeVar("_Result", bound=BaseModel)


class Best(BaseModel):
    """The best of the checkpoints that a run kept.

    Attributes:
        by: `best_by` of the job.
        value: of that; of `loss` the mean since the checkpoint before.
        bundle: the bundle that was made of it; None where none was asked for.
    """

    model_config = ConfigDict(frozen=True)
    images_seen: int
    by: str
    value: float
    checkpoint: str
    bundle: str | None = None

    def tags(self) -> dict[str, str]:
        """What a run's tags say of it."""
        told = {"best_by": self.by, "best_value": f"{self.value:.6g}", "best_images_seen": str(self.images_seen)}
        return told | {
            "best_checkpoint": self.checkpoint,
            **({} if self.bundle is None else {"bundle_best": self.bundle}),
        }

    def moved_to(self, folder: str) -> Best:
        """The same, with the run in another folder."""
        path = storage.join(folder, "checkpoints", self.checkpoint.rpartition("/")[2])
        bundle = None if self.bundle is None else storage.join(folder, BEST_BUNDLE)
        return self.model_copy(update={"checkpoint": path, "bundle": bundle})


def known_run(folder: str) -> str | None:
    """The id of the MLflow run that an earlier attempt in this folder began."""
    try:
        return str(json.loads(storage.read_bytes(storage.join(folder, RUN_FILE)))["run_id"])
    except (FileNotFoundError, ValueError, KeyError):
        return None


def stored_result(folder: str, kind: type[_Result]) -> _Result | None:
    """The result, with a field `bundle`, of a run that came to its end in a folder; None where none did."""
    from training.bundle import INFO_FILE

    try:
        result = kind.model_validate_json(storage.read_bytes(storage.join(folder, RESULT_FILE)))
    except (FileNotFoundError, ValidationError):
        return None
    bundle = storage.join(folder, "bundle")  # the folder may have been moved since
    return result.model_copy(update={"bundle": bundle}) if storage.exists(storage.join(bundle, INFO_FILE)) else None
