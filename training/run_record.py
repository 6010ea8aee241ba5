"""What a run's folder remembers of it: its MLflow run, and what it came to."""

from __future__ import annotations

import json
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from curation import storage

RUN_FILE = "run.json"
RESULT_FILE = "result.json"

_Result = TypeVar("_Result", bound=BaseModel)


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
