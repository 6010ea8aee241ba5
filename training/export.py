"""Export: a bundle's denoiser in other formats, compared with torch before anybody may rely on it.

To add a format: a builder in `BUILDERS`, its name in `export_job.Format`, its file in `exported.FILES`, its limits in
`export_job.FormatLimits`, and how it is opened in `exported.load_exported`.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from curation import storage
from training import folders, parity, quantize, tensorrt_engine
from training.bundle import INFO_FILE, DiffusionModel, load_bundle
from training.export_job import ExportJob, Format
from training.exported import FILES, REPORT_FILE, Artifact, ExportReport, Port
from training.onnx_denoiser import OPSET, OUTPUT, Denoiser, OnnxDenoiser, Rows, TorchDenoiser, record, write_graph
from training.sampling import SamplingParams, sample
from training.tensorrt_engine import TensorRtDenoiser


@dataclass(frozen=True)
class Order:
    """What a builder works from.

    Attributes:
        model: the bundle's model, on the CPU.
        folder: where `FILES` are written; those of earlier formats are there.
        calls: what the model's own sampler asked it, by timestep.
    """

    model: DiffusionModel
    folder: Path
    calls: list[Rows]
    job: ExportJob
    bundle_sha256: str


class Builder(Protocol):
    """Makes one format."""

    def build(self, order: Order) -> Denoiser:
        """Writes the format's file and opens it."""
        ...


class OnnxBuilder:
    def build(self, order: Order) -> Denoiser:
        info, path = order.model.info, order.folder / FILES["onnx"]
        about = {"bundle_sha256": order.bundle_sha256, "manifest_id": info.manifest_id, "prediction": info.prediction}
        about |= {"image_size": str(info.image_size), "patch_size": str(info.patch_size)}
        write_graph(order.model, order.calls[0], path, about={f"cleanplate.{key}": v for key, v in about.items()})
        return OnnxDenoiser(path)


class Int8Builder:
    def build(self, order: Order) -> Denoiser:
        path = order.folder / FILES["int8"]
        quantize.quantize(order.folder / FILES["onnx"], path, order.calls, order.job.calibration)
        return OnnxDenoiser(path)


class TensorRtBuilder:
    def __init__(self) -> None:
        tensorrt_engine.require()  # before minutes are spent on what it is built from

    def build(self, order: Order) -> Denoiser:
        path, job = order.folder / FILES["tensorrt"], order.job
        source = order.folder / FILES["onnx"]
        tensorrt_engine.build_engine(source, path, order.calls[0], half=job.half, max_batch=job.max_batch)
        return TensorRtDenoiser(path)


BUILDERS: dict[Format, Callable[[], Builder]] = {"onnx": OnnxBuilder, "int8": Int8Builder, "tensorrt": TensorRtBuilder}


def export(bundle: Path, out: Path, job: ExportJob) -> ExportReport:
    """Makes the job's formats of a bundle and puts those that keep their limits, and the report, into `out`.

    An older export there is replaced. Where the ONNX graph itself is refused nothing is built from it, and the folder
    stays as it was.

    Raises:
        UserError: no bundle, a library or GPU that is missing, or a folder with other things in it.
    """
    folders.refuse_foreign(out, REPORT_FILE, "an export")
    builders = {kind: BUILDERS[kind]() for kind in job.formats}
    model = load_bundle(bundle)
    staging = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.partial")
    staging.mkdir(parents=True)
    try:
        prompts = [model.info.captions[i] for i in _evenly(len(model.info.captions), job.calibration.pictures)]
        seeds = [job.calibration.seed + i for i in range(job.calibration.pictures)]
        calls = record(model, prompts or [""] * len(seeds), seeds, model.info.sampling)
        order = Order(model, staging, calls, job, storage.sha256_of(bundle / INFO_FILE))
        compare = _Comparison(model, calls, job)
        artifacts: dict[Format, Artifact] = {}
        refused: dict[Format, list[str]] = {}
        for kind, builder in builders.items():
            if "onnx" in refused:
                refused[kind] = ["it would be built from a graph that was refused"]
                continue
            checks = compare(builder.build(order))
            failures = checks.failures(getattr(job.limits, kind))
            made = _artifact(staging, kind, checks, failures)
            if failures and not job.force:
                refused[kind] = failures
                for name in made.files:
                    (staging / name).unlink()
            else:
                artifacts[kind] = made
        report = _report(order, artifacts, refused)
        (staging / REPORT_FILE).write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
        if artifacts:
            _install(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return report


class _Comparison:
    """Every format against the same torch predictions and pictures."""

    def __init__(self, model: DiffusionModel, calls: list[Rows], job: ExportJob) -> None:
        plan, info = job.comparison, model.info
        self._model, self._pool, self._plan = model, Rows.join(calls), plan
        self._params: SamplingParams = info.sampling.model_copy(update={"steps": plan.steps} if plan.steps else {})
        self._prompts = [info.captions[i] for i in _evenly(len(info.captions), plan.pictures)] or [""] * plan.pictures
        self._seeds = [plan.seed + i for i in range(plan.pictures)]
        self._pictures = sample(model, self._prompts, self._seeds, self._params)

    def __call__(self, denoiser: Denoiser) -> parity.Checks:
        return parity.Checks(
            parity=parity.parity(
                denoiser, TorchDenoiser(self._model), self._pool,
                timesteps=len(self._model.betas), batches=self._plan.batches, seed=self._plan.seed,
            ),
            likeness=parity.likeness(
                self._model, denoiser, self._pictures, self._prompts, self._seeds, self._params
            ),
        )  # fmt: skip


def _evenly(of: int, count: int) -> list[int]:
    """Indices of `count` of `of` things, evenly spread, repeated where there are fewer; none of none."""
    return [i * of // count if of >= count else i % of for i in range(count)] if of else []


def _artifact(folder: Path, kind: Format, checks: parity.Checks, failures: list[str]) -> Artifact:
    name = FILES[kind]
    paths = [path for path in (folder / name, folder / f"{name}.data") if path.exists()]
    return Artifact(
        file=name,
        files={path.name: storage.sha256_of(path) for path in paths},
        size=sum(path.stat().st_size for path in paths),
        checks=checks,
        forced=failures,
    )


def _report(order: Order, artifacts: dict[Format, Artifact], refused: dict[Format, list[str]]) -> ExportReport:
    info, rows = order.model.info, order.calls[0]
    ports = [_port(name, array) for name, array in rows.feed().items()]
    return ExportReport(
        name=info.name,
        bundle_sha256=order.bundle_sha256,
        manifest_id=info.manifest_id,
        prediction=info.prediction,
        image_size=info.image_size,
        patch_size=info.patch_size,
        opset=OPSET,
        inputs=ports,
        output=ports[0].model_copy(update={"name": OUTPUT}),
        artifacts=artifacts,
        refused=refused,
        job=order.job,
        libraries=_libraries("torch", "diffusers", "onnx", "onnxscript", "onnxruntime", "tensorrt"),
    )


def _port(name: str, array: np.ndarray) -> Port:
    return Port(name=name, dtype=array.dtype.name, shape=["batch", *array.shape[1:]])


def _libraries(*names: str) -> dict[str, str]:
    known = {distribution.name for distribution in importlib.metadata.distributions()}
    return {name: importlib.metadata.version(name) for name in names if name in known}


def _install(staging: Path, out: Path) -> None:
    """Moves the files; the report vouches for them, so the old one goes first and the new one comes last."""
    out.mkdir(parents=True, exist_ok=True)
    if (out / REPORT_FILE).is_file():
        (out / REPORT_FILE).unlink()
    for name in FILES.values():
        for old in (out / name, out / f"{name}.data"):
            old.unlink(missing_ok=True)
    for path in sorted(staging.iterdir(), key=lambda path: path.name == REPORT_FILE):
        os.replace(path, out / path.name)
