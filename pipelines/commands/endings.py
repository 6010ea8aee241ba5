"""How a command ends: with a plan, a summary for a person, or one line of JSON."""

from __future__ import annotations

import importlib
import json
from typing import Any

from pydantic import BaseModel


def run_job(kind: str, path: str, sets: list[str], dry_run: bool, as_json: bool) -> None:
    from pipelines import config

    job = config.load_job(path, sets, kind=kind)
    verb: Any = importlib.import_module(f"pipelines.{kind}")
    if dry_run:
        print_plan(job, verb.plan(job), as_json)
    else:
        end(verb.run(job), verb, as_json)


def print_plan(job: BaseModel, resources: dict[str, Any], as_json: bool) -> None:
    """The resolved job as YAML, a line of dashes, and what it would ask for."""
    from pipelines import config

    print(config.to_yaml(job), end="")
    print("---\n" + json.dumps(resources, indent=None if as_json else 2))


def end(result: BaseModel, verb: Any, as_json: bool) -> None:
    """The last words: a summary for a person, or one line of JSON."""
    if as_json:
        print(result.model_dump_json(), flush=True)
    elif verb is not None:
        print("\n".join(verb.summary(result)), flush=True)
