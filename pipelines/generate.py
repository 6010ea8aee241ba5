"""`cleanplate generate`: pictures from a prompt, by a running endpoint or straight from the registry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from pydantic import BaseModel, ValidationError

from curation.errors import UserError

if TYPE_CHECKING:
    from serving.api import GenerationResponse
    from serving.job import ServeJob

DEFAULT_SERVER = "http://127.0.0.1:8000"


REGISTRY = "registry"
_NO_GUARD = "the server's job sets no `safety`"


class Generated(BaseModel):
    """What came of a prompt."""

    prompt: str
    files: list[str]
    seeds: list[int]
    withheld: list[dict[str, Any]]
    model: str
    model_version: str
    source: str  # the endpoint's URL, or REGISTRY
    guarded: bool  # whether something looked at the pictures, as far as is known here


def run(
    prompt: str,
    out: str,
    fields: dict[str, Any],
    *,
    server: str | None,
    model: str | None,
    job: ServeJob | None = None,
) -> Generated:
    """Generates and writes pictures.

    Args:
        prompt: what to draw.
        out: the file; with several pictures a number goes before its suffix.
        fields: more fields of the request (`n`, `seed`, `guidance_scale`, …); None leaves one to the model.
        server: the endpoint; when neither it nor a model is given, a cleanplate server on this machine is used if one
            answers, else the registry.
        model: `models:/NAME@alias`, a name or a bundle's folder, for the registry.
        job: a serve job, by whose model, limits and guards to draw without its server. Without one, the rules for
            prompts that ship hold, and nobody looks at the pictures.

    Raises:
        UserError: for a bad request, a prompt that is blocked, a model that is not there, or a server that was named
            and does not answer.
    """
    target = Path(out)
    suffix = target.suffix.lower().removeprefix(".") or "png"
    output_format = {"jpg": "jpeg"}.get(suffix, suffix)
    if output_format not in ("png", "jpeg", "webp"):
        raise UserError(f"no pictures are written as .{suffix}", field="--out", remedy="use .png, .jpg or .webp")
    request = {name: value for name, value in fields.items() if value is not None} | {"output_format": output_format}
    if job is not None and server is not None:
        raise UserError("a server has its own job", field="--job", remedy="give --server or --job")
    if server is None and model is None and job is None and _answers(DEFAULT_SERVER):
        server = DEFAULT_SERVER
    if server is not None:
        from serving.client import generate

        response = generate(server, prompt, **request)
    else:
        response = _from_registry(prompt, request, model, job)
    files, seeds, withheld = [], [], []
    for index, datum in enumerate(response.data):
        data = datum.picture()
        if data is None:
            withheld.append(datum.model_dump(mode="json", exclude={"b64_json"}))
            continue
        name = target if len(response.data) == 1 else target.with_stem(f"{target.stem}-{index}")
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_bytes(data)
        files.append(str(name))
        seeds.append(datum.seed)
    return Generated(
        prompt=prompt,
        files=files,
        seeds=seeds,
        withheld=withheld,
        model=response.model,
        model_version=response.model_version,
        source=server or REGISTRY,
        guarded=any(datum.safety or datum.moderation for datum in response.data),
    )


def _from_registry(prompt: str, request: dict[str, Any], model: str | None, job: ServeJob | None) -> GenerationResponse:
    from serving.api import GenerationRequest
    from serving.generator import load
    from serving.job import ServeJob
    from serving.nearness import AttributionConfig, NearCopiesConfig
    from training.tracking import only_model

    try:
        checked = GenerationRequest.model_validate({"prompt": prompt, **request})
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(first["msg"], field=".".join(map(str, first["loc"])), remedy="correct the value") from None
    if job is None:  # nobody looks
        unlooked = {"near_copies": NearCopiesConfig(action="off"), "attribution": AttributionConfig(enabled=False)}
        job = ServeJob(model=model or f"models:/{only_model()}@champion", **unlooked)
    elif model is not None:
        job = job.model_copy(update={"model": model})
    return load(job).generate(checked).response()


def _answers(url: str) -> bool:
    try:
        return "manifest_id" in httpx.get(f"{url}/v1/models", timeout=2, trust_env=False).json()["data"][0]
    except (httpx.HTTPError, ValueError, LookupError, TypeError):
        return False  # nothing listens, or something that is not ours


def summary(result: Generated) -> list[str]:
    """The result for a person."""
    lines = [f"{file}  (seed {seed})" for file, seed in zip(result.files, result.seeds, strict=True)]
    for entry in result.withheld:
        why = ", ".join(sorted({said["category"] for said in entry["moderation"]}))
        lines.append(f"one picture withheld: {why or entry['finish_reason']}  (seed {entry['seed']})")
    if not result.guarded:
        guards = "--job FILE draws as a serve job says, with its guards"
        lines.append(f"nothing looked at the pictures: {guards if result.source == REGISTRY else _NO_GUARD}")
    return [*lines, f"by {result.model} version {result.model_version}, from {result.source}"]
