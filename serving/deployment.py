"""A strict look at files that Ray Serve deploys (`serve deploy`, `serve run`, a RayService's `serveConfigV2`).

Ray itself accepts them with keys that it does not know, in deployments and in `autoscaling_config`, and goes on without
what was meant. Here every key must be one that the installed Ray knows, every value one that it takes, and where the
application is ours, its arguments must be a serve job and its deployments ours. Nothing is deployed.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from curation.errors import UserError, unknown
from serving.job import GATEWAY, SAMPLER, ServeJob

OURS = "serving.app:build"
DEPLOYMENTS = (SAMPLER, GATEWAY)
_NOT_READ = {
    "host": "http_options.host, beside applications",
    "port": "http_options.port, beside applications",
    "route_prefix": "the application's route_prefix",
    "name": "the application's name",
}
"""Fields of a serve job that Serve's own tools decide, and where they are said there."""


@dataclass(frozen=True)
class Mistake:
    """What is wrong in a file, where, and what to do about it."""

    field: str
    message: str
    remedy: str


def check(raw: Mapping[str, Any]) -> list[Mistake]:
    """Everything that is wrong with a file's contents, from its beginning on."""
    from ray.serve.schema import ServeDeploySchema

    config, prefix = _config_of(raw)
    found = list(_unknown(config, ServeDeploySchema, prefix))
    found += [
        Mistake(prefix + mistake.field, mistake.message, mistake.remedy)
        for mistake in _values(config, ServeDeploySchema, "")
    ]
    if not any(mistake.field == f"{prefix}applications" for mistake in found):
        for number, application in enumerate(config.get("applications", [])):
            found += _application(application, f"{prefix}applications.{number}")
    first: dict[str, Mistake] = {}
    for mistake in found:
        first.setdefault(mistake.field, mistake)
    return list(first.values())


def applications(raw: Mapping[str, Any]) -> list[str]:
    """The names of a checked file's applications."""
    return [str(application.get("name", "default")) for application in _config_of(raw)[0]["applications"]]


def refuse(mistakes: Sequence[Mistake]) -> None:
    """Raises UserError with the first mistake and the places of the others; nothing where there is none."""
    if not mistakes:
        return
    first, *others = mistakes
    more = f" ({len(others)} more: {', '.join(other.field for other in others)})" if others else ""
    raise UserError(first.message + more, field=first.field, remedy=first.remedy)


def _config_of(raw: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """The Serve config, and what its fields' names begin with: inside a RayService it is a text."""
    if raw.get("kind") != "RayService":
        return raw, ""
    field = "spec.serveConfigV2"
    text = (raw.get("spec") or {}).get("serveConfigV2")
    try:
        config = yaml.safe_load(text) if isinstance(text, str) else None
    except yaml.YAMLError as error:
        raise UserError(f"the text is no YAML: {error}", field=field, remedy="mend it") from None
    if not isinstance(config, dict):
        raise UserError("a RayService holds its applications as a text", field=field, remedy="write `serveConfigV2: |`")
    return config, field + "."


def _unknown(value: Any, annotation: Any, path: str) -> Iterator[Mistake]:
    """Keys below a value that its type does not know; `path` ends with a dot, or is empty."""
    if isinstance(value, Mapping):
        models = list(_models(annotation))
        if not models:
            return
        if any(dict in (member, typing.get_origin(member)) for member in _members(annotation)):
            yield from _values(value, models[0], path)  # Ray takes any mapping here, and looks at it when it deploys
        known = {name: field.annotation for model in models for name, field in model.model_fields.items()}
        for key, child in value.items():
            if key in known:
                yield from _unknown(child, known[key], f"{path}{key}.")
            else:
                yield Mistake(f"{path}{key}", "Ray Serve has no such field, and would not say so", unknown(key, known))
    elif isinstance(value, list):
        for number, child in enumerate(value):
            yield from _unknown(child, annotation, f"{path}{number}.")


def _members(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else ()


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that a value of this type may be, or hold as a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType, list, typing.Annotated):
        for argument in typing.get_args(annotation):
            yield from _models(argument)


def _values(value: Any, model: type[BaseModel], path: str) -> Iterator[Mistake]:
    try:
        model.model_validate(value)
    except ImportError as error:
        if path:  # of the whole file it is told once more, where it stands
            yield Mistake(path.rstrip("."), f"it names what cannot be imported here: {error}", "correct the name")
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            where = [str(part) for part in problem["loc"]]
            if problem["type"] == "extra_forbidden":
                continue  # `_unknown` has it, with its neighbours
            remedy = "add it" if problem["type"] == "missing" else "correct the value"
            field = path + ".".join(_in_file(where, value))
            yield Mistake(field.rstrip("."), str(problem["msg"]).removeprefix("Value error, "), remedy)


def _in_file(where: Sequence[str], value: Any) -> Iterator[str]:
    """A place as the file has it: pydantic names the members of unions on the way."""
    node = value
    for number, part in enumerate(where):
        last = number == len(where) - 1
        if isinstance(node, Mapping) and (part in node or last):
            yield part
            node = node.get(part)
        elif isinstance(node, list) and part.isdigit() and int(part) < len(node):
            yield part
            node = node[int(part)]


def _application(application: Mapping[str, Any], path: str) -> Iterator[Mistake]:
    if application.get("import_path") != OURS:
        return
    args = application.get("args") or {}
    for name in args:
        if name in _NOT_READ:
            yield Mistake(f"{path}.args.{name}", "Serve's own tools decide that", f"say it as {_NOT_READ[name]}")
    yield from _job(args, f"{path}.args")
    for number, deployment in enumerate(application.get("deployments") or []):
        name = deployment.get("name")
        if name not in DEPLOYMENTS:
            field = f"{path}.deployments.{number}.name"
            yield Mistake(field, f"the application has no deployment {name!r}", unknown(str(name), DEPLOYMENTS))


def _job(args: Mapping[str, Any], path: str) -> Iterator[Mistake]:
    try:
        ServeJob.model_validate(args)
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            where = [str(part) for part in problem["loc"]]
            field = ".".join([path, *where])
            if problem["type"] == "extra_forbidden":
                yield Mistake(field, "a serve job has no such field", unknown(where[-1], _fields(where[:-1])))
            elif problem["type"] == "missing":
                yield Mistake(field, "a serve job needs this field", "add it")
            else:
                yield Mistake(field, str(problem["msg"]).removeprefix("Value error, "), "correct the value")


def _fields(where: Sequence[str]) -> Iterable[str]:
    """Names of the fields at a place in a serve job."""
    models: list[type[BaseModel]] = [ServeJob]
    for part in where:
        inner = [model.model_fields[part].annotation for model in models if part in model.model_fields]
        models = [found for annotation in inner for found in _models(annotation)]
    return [name for model in models for name in model.model_fields]
