"""Job files: YAML in, a checked and frozen job out.

Every mistake is found here, before anything starts, and told with the field's name and what to do about it.
"""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from curation.errors import UserError, unknown

KINDS = (
    *("curate", "autoencoder", "train", "distill", "register", "index", "evaluate", "promote", "export", "serve"),
    "pipeline",
)
STDIN = "-"
_LARGEST = 1_000_000  # values in a job file


def model_of(kind: str) -> type[BaseModel]:
    """The job model of a verb; each is imported when it is asked for, so that `--help` stays quick."""
    if kind == "curate":
        from curation.job import CurateJob

        return CurateJob
    if kind == "autoencoder":
        from training.autoencoder_job import AutoencoderJob

        return AutoencoderJob
    if kind == "train":
        from training.job import TrainJob

        return TrainJob
    if kind == "distill":
        from training.distill_job import DistillJob

        return DistillJob
    if kind == "register":
        from pipelines.register import RegisterJob

        return RegisterJob
    if kind == "index":
        from pipelines.index import IndexJob

        return IndexJob
    if kind == "evaluate":
        from pipelines.evaluate import EvaluateJob

        return EvaluateJob
    if kind == "promote":
        from pipelines.promote import PromoteJob

        return PromoteJob
    if kind == "export":
        from training.export_job import ExportJob

        return ExportJob
    if kind == "serve":
        from serving.job import ServeJob

        return ServeJob
    if kind == "pipeline":
        from pipelines.pipeline import PipelineJob

        return PipelineJob
    raise KeyError(kind)


def load_job(path: str, overrides: Sequence[str] = (), *, kind: str | None = None) -> Any:
    """Reads a job file, applies `a.b=value` overrides and checks the result.

    Args:
        path: the YAML file, or `-` for standard input.
        overrides: dotted fields with YAML values; list elements by number (`optout.0.path=x.csv`).
        kind: the verb that wants the job; a file of another kind is refused.

    Raises:
        UserError: for anything wrong with the file, the overrides or the job.
    """
    raw = read(path)
    if raw.get("kind", kind) == "pipeline":
        from pipelines.pipeline import inlined

        raw = inlined(raw, Path() if path == STDIN else Path(path).parent)
    _apply_all(raw, overrides)
    found = _known(raw.get("kind", kind))
    if kind is not None and found != kind:
        raise UserError(
            f"{path} is a {found} job", field="kind", remedy=f"run `cleanplate {found} {path}`, or give a {kind} job"
        )
    return check(raw, found)


def build(raw: dict[str, Any], overrides: Sequence[str] = ()) -> Any:
    """A job without a file: raw fields, of which `kind` is one, and overrides. Raises UserError as `load_job` does."""
    _apply_all(raw, overrides)
    return check(raw, raw["kind"])


def merged(raw: dict[str, Any], fields: Mapping[str, Any], *, unless: Callable[[Any], bool]) -> Any:
    """A job of raw fields with some of them overridden, by their dotted names.

    Args:
        unless: a value that it is true of may be wrong; the job is then given back unchecked.

    Raises:
        UserError: as `load_job`.
    """
    raw = copy.deepcopy(raw)
    for name, value in fields.items():
        _put(raw, name, value)
    return check(raw, _known(raw.get("kind")), unless=unless)


def check(raw: dict[str, Any], kind: str, *, unless: Callable[[Any], bool] = lambda value: False) -> Any:
    """Validates a job's raw fields. Raises UserError naming the first field that is wrong, and counting the others.

    Args:
        unless: a value that it is true of may be wrong; the job is then given back unchecked.
    """
    model = model_of(kind)
    _refuse_passwords(raw)
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        problems = [found for found in error.errors(include_url=False) if not unless(found.get("input"))]
        if not problems:
            return model.model_construct(**raw)
        first = problems[0]
        # Pydantic puts the tag of a discriminated union into the path; a user's file has no such level.
        path = [str(part) for part in first["loc"]]
        field = ".".join(_without_tags(path, raw))
        others = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(_message(first) + others, field=field or kind, remedy=_remedy(first, model, path)) from None


def _refuse_passwords(node: Any, field: str = "") -> None:
    """A job stands in what it makes: manifests, bundles, MLflow. Raises UserError for a URL with a password."""
    if isinstance(node, dict | list):
        for name, child in node.items() if isinstance(node, dict) else enumerate(node):
            _refuse_passwords(child, f"{field}.{name}" if field else str(name))
    elif isinstance(node, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#@:]*:[^/?#]*@", node):
        raise UserError(
            "the URL holds a password, and a job is written into all that it makes",
            field=field,
            remedy="leave it out: passwords come from the environment, those of MLflow as MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or in MLFLOW_TRACKING_URI",
        )


def _known(kind: Any) -> str:
    if kind not in KINDS:
        raise UserError(f"no job of the kind {kind!r}", field="kind", remedy=f"use one of {', '.join(KINDS)}")
    return str(kind)


def to_yaml(job: BaseModel) -> str:
    """The resolved job, every default filled in."""
    return yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def read(path: str) -> dict[str, Any]:
    """A job file's raw fields. Raises UserError when it has none."""
    try:
        text = sys.stdin.read() if path == STDIN else Path(path).read_text(encoding="utf-8")
        raw = yaml.safe_load(text)
        _refuse_bombs(raw)
    except FileNotFoundError:
        raise UserError(f"no job file at {path}", field="job", remedy="give a YAML file; see pipelines/jobs/") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path} is no YAML file: {error}", field="job", remedy="mend the file") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds no fields", field="job", remedy="write `field: value` lines") from None
    return raw


def _refuse_bombs(raw: Any) -> None:
    """Aliases may stand for one value in many places: of some, of which each stands for some, the whole is endless.

    Raises:
        ValueError: more than `_LARGEST` values when written out, or one that holds itself.
    """
    sizes: dict[int, int] = {}

    def size(node: Any) -> int:
        if not isinstance(node, dict | list):
            return 1
        if id(node) not in sizes:
            sizes[id(node)] = _LARGEST + 1  # until it is known: whoever comes back here is inside of it
            inner = [*node, *node.values()] if isinstance(node, dict) else node
            sizes[id(node)] = 1 + sum(map(size, inner))
        return sizes[id(node)]

    if size(raw) > _LARGEST:
        raise ValueError(f"its aliases stand for more than {_LARGEST:,} values")


def _apply_all(raw: dict[str, Any], overrides: Sequence[str]) -> None:
    for override in overrides:
        _apply(raw, override)


def _apply(raw: dict[str, Any], override: str) -> None:
    name, separator, text = override.partition("=")
    if not separator or not name:
        raise UserError(f"{override!r} sets nothing", field="--set", remedy="write --set a.b=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{text!r} is no YAML value: {error}", field=f"--set {name}", remedy="quote it") from None
    _put(raw, name, value)


def _put(raw: dict[str, Any], name: str, value: Any) -> None:
    *parents, last = name.split(".")
    node: Any = raw
    for part in parents:
        node = _child(node, part, name)
    if isinstance(node, list):
        _child(node, last, name)
        node[int(last)] = value
    else:
        node[last] = value


def _child(node: Any, part: str, name: str) -> Any:
    if isinstance(node, list):
        if not part.isdigit() or int(part) >= len(node):
            raise UserError(f"the list has no element {part}", field=f"--set {name}", remedy=f"0 to {len(node) - 1}")
        return node[int(part)]
    if not isinstance(node.get(part), dict | list):
        node[part] = {}
    return node[part]


def _without_tags(path: list[str], raw: Any) -> list[str]:
    field, node = [], raw
    for part in path:
        if isinstance(node, dict) and part not in node and node.get("kind") == part:
            continue
        field.append(part)
        if isinstance(node, dict):
            node = node.get(part)
        elif isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
    return field


def _message(problem: Any) -> str:
    kind = problem["type"]
    if kind == "extra_forbidden":
        return "there is no such field"
    if kind == "missing":
        return "this field is required"
    text = str(problem["msg"]).removeprefix("Value error, ")
    value = problem.get("input")
    if isinstance(value, dict | list) or repr(value) in text:
        return text
    shown = re.sub(r"://[^/?#]*@", "://", value) if isinstance(value, str) else value  # no password of a URL
    return f"{text}, not {shown!r}"


def _remedy(problem: Any, model: type[BaseModel], path: list[str]) -> str:
    if problem["type"] == "extra_forbidden":
        return unknown(path[-1], _fields(model, path[:-1]))
    return "add it" if problem["type"] == "missing" else "correct the value"


def _fields(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Names of the fields at a place in a job, read off the model's JSON schema."""
    schema = model.model_json_schema()
    nodes = [schema]
    for part in path:
        nodes = [child for node in nodes for child in _children(schema, node, part)]
    return list(dict.fromkeys(name for node in nodes for name in node.get("properties", {})))


def _children(schema: dict[str, Any], node: dict[str, Any], part: str) -> list[dict[str, Any]]:
    found = node.get("properties", {}).get(part) or node.get("items") or node
    options = [found, *found.get("anyOf", []), *found.get("oneOf", []), *found.get("allOf", [])]
    return [schema["$defs"][o["$ref"].rsplit("/", 1)[-1]] if "$ref" in o else o for o in options]
