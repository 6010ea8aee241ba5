"""`cleanplate export`: a model's denoiser as ONNX, int8 or a TensorRT engine, attached to its version in MLflow."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from curation import storage
from curation.errors import UserError
from pipelines import config
from training.export_job import ExportJob, Format


class ExportedFormat(BaseModel):
    """One format that was kept."""

    format: Format
    file: str
    sha256: str
    size: int
    figures: str
    forced: list[str]


class Exported(BaseModel):
    """What came of an export."""

    model: str
    version: str
    folder: str | None
    attached: bool
    formats: list[ExportedFormat]
    refused: dict[str, list[str]]


def job_of(subject: str, sets: list[str], *, int8: bool, tensorrt: bool, out: str | None, force: bool) -> ExportJob:
    """The job of a command line: of a job file, or of a model and the defaults; options come on top.

    Raises:
        UserError: for anything wrong with the file, the overrides or the job.
    """
    formats = [kind for kind, asked in (("int8", int8), ("tensorrt", tensorrt)) if asked]
    options = [f"formats=[{', '.join(formats)}]"] if formats else []
    options += [f"force={str(force).lower()}"] if force else []
    if subject == config.STDIN or subject.endswith((".yaml", ".yml")):
        job: ExportJob = config.load_job(subject, [*sets, *options], kind="export")
    else:
        job = config.build({"kind": "export", "model": subject}, [*sets, *options])
    return job if out is None else job.model_copy(update={"out": out})


def plan(job: ExportJob) -> dict[str, Any]:
    """What exporting would do; downloads nothing.

    Raises:
        UserError: no such model, or a GPU or library that is missing.
    """
    from training import tensorrt_engine, tracking

    if "tensorrt" in job.formats:
        tensorrt_engine.require()
    if not _is_folder(job.model):
        tracking.find(job.model, tracking_uri=job.tracking_uri)
    return {"formats": list(job.formats), "cpus": 1, "gpus": int("tensorrt" in job.formats)}


def _is_folder(model: str) -> bool:
    return storage.is_remote(model) or (not model.startswith("models:/") and Path(model).is_dir())


def run(job: ExportJob) -> Exported:
    """Exports, and attaches what keeps its limits.

    Raises:
        UserError: no such model, a library or GPU that is missing, or a folder that holds something else.
    """
    from serving import selftest
    from training import tracking
    from training.export import export
    from training.exported import FOLDER

    if storage.is_remote(job.model) and job.out is None:
        raise UserError("a bundle on S3 gets no files beside it", field="out", remedy="name a local folder: --out DIR")
    version = tracking.resolve(job.model, tracking_uri=job.tracking_uri)
    out = Path(job.out) if job.out is not None else Path(version.bundle) / FOLDER
    print(f"exporting {version.name} version {version.version}: {', '.join(job.formats)}", file=sys.stderr, flush=True)
    report = export(Path(version.bundle), out, job)
    attached = job.attach and version.name != "local" and bool(report.artifacts)
    if attached:
        tracking.attach_export(version, out, report.tags(), tracking_uri=job.tracking_uri)
        if Path(version.bundle) / FOLDER == out:
            # ONNX Runtime draws with another graph from now on
            tests = selftest.tags_of(version.bundle)
            tracking.tag_version(version.name, version.version, tests, tracking_uri=job.tracking_uri)
    return Exported(
        model=version.name,
        version=version.version,
        folder=str(out) if report.artifacts else None,
        attached=attached,
        formats=[
            ExportedFormat(
                format=kind,
                file=str(out / made.file),
                sha256=made.files[made.file],
                size=made.size,
                figures=made.checks.summary(),
                forced=made.forced,
            )
            for kind, made in report.artifacts.items()
        ],
        refused={str(kind): why for kind, why in report.refused.items()},
    )


def summary(result: Exported) -> list[str]:
    """The result for a person."""
    lines = []
    for made in result.formats:
        lines.append(f"{made.format:8} {made.file}  {made.size / 1e6:.1f} MB  sha256 {made.sha256}")
        lines.append(f"         {made.figures}")
        lines += [f"         FORCED: {why}" for why in made.forced]
    for kind, why in result.refused.items():
        lines.append(f"{kind:8} REFUSED: {'; '.join(why)} (--force keeps it)")
    if result.attached:
        lines.append(f"attached to {result.model} version {result.version}")
    return lines
