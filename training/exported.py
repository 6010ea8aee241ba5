"""What an export left in a bundle's folder: its report, and the model with its network run outside torch.

    onnx/export.json            `ExportReport`, written last: the contract, what was measured, sha256 of every file
    onnx/denoiser.onnx          fp32 (weights over 1 GiB in denoiser.onnx.data)
    onnx/denoiser.int8.onnx     static int8, if asked for
    onnx/denoiser.engine        TensorRT, if asked for; for the GPU it was built on

The folder is an optional part of the bundle: `cleanplate.json` knows nothing of it, so the bundle stays what it is.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from curation import storage
from curation.errors import UserError
from curation.manifest import FileName
from training.bundle import INFO_FILE, DiffusionModel, load_bundle
from training.export_job import ExportJob, Format
from training.onnx_denoiser import AsUnet, Denoiser, OnnxDenoiser, with_unet
from training.parity import Checks
from training.tensorrt_engine import TensorRtDenoiser

FOLDER = "onnx"
REPORT_FILE = "export.json"
SCHEMA_VERSION = 1
FILES: dict[Format, str] = {"onnx": "denoiser.onnx", "int8": "denoiser.int8.onnx", "tensorrt": "denoiser.engine"}


class Port(BaseModel):
    """An input or the output of the graph."""

    model_config = ConfigDict(frozen=True)
    name: str
    dtype: str
    shape: list[str | int]


class Artifact(BaseModel):
    """One format that was made."""

    model_config = ConfigDict(frozen=True)
    file: FileName
    files: dict[FileName, str] = Field(description="sha256 by name, of `file` and what belongs to it")
    size: int = Field(description="bytes of all of them")
    checks: Checks
    forced: list[str] = Field([], description="what is over a limit and was kept all the same")


class ExportReport(BaseModel):
    """The contents of `export.json`."""

    model_config = ConfigDict(frozen=True)
    schema_version: int = SCHEMA_VERSION
    name: str
    bundle_sha256: str = Field(description="of the bundle's `cleanplate.json`")
    manifest_id: str
    prediction: str = Field(description="what the output is")
    image_size: int
    patch_size: int
    opset: int
    inputs: list[Port]
    output: Port
    artifacts: dict[Format, Artifact]
    refused: dict[Format, list[str]] = Field(description="formats that were made and not kept, and why")
    job: ExportJob
    libraries: dict[str, str]

    def tags(self) -> dict[str, str]:
        """What a model version's tags say of it; those of parity begin with `passed` or `failed`."""
        said = {"export.formats": ",".join(self.artifacts), "export.opset": str(self.opset)}
        for kind, made in self.artifacts.items():
            said[f"export.{kind}.sha256"] = made.files[made.file]
            told = "; ".join(made.forced) if made.forced else made.checks.summary()
            said[f"export.{kind}.parity"] = f"{'failed' if made.forced else 'passed'}: {told}"[:500]
        return said


def read_report(folder: str | Path) -> ExportReport:
    """Raises UserError: no export there, a damaged one, or one of a newer schema."""
    path = Path(folder) / REPORT_FILE
    try:
        report = ExportReport.model_validate_json(path.read_bytes())
    except OSError:
        raise UserError(f"no export at {folder}", field="model", remedy="make one: `cleanplate export MODEL`") from None
    except ValidationError as error:
        raise UserError(f"{path} is damaged: {error}", field="model", remedy="export the model again") from None
    if report.schema_version > SCHEMA_VERSION:
        raise UserError(f"{path} is of a newer cleanplate", field="model", remedy="upgrade, or export it again")
    return report


def load_exported(
    bundle: str | Path, kind: Format = "onnx", *, folder: str | Path | None = None, threads: int | None = None
) -> DiffusionModel:
    """A bundle's model that `training.sampling.sample` draws with, its network run by onnxruntime or TensorRT.

    Args:
        folder: of the export; `onnx` in the bundle's by default. Every file is checked against the report.
        threads: of onnxruntime; torch's number by default.

    Raises:
        UserError: no bundle, no such export of it, a damaged one, or a library that is missing.
    """
    path = exported_file(bundle, kind, folder=folder)
    denoiser: Denoiser = TensorRtDenoiser(path) if kind == "tensorrt" else OnnxDenoiser(path, threads)
    return with_unet(load_bundle(bundle), AsUnet(denoiser))


def exported_file(bundle: str | Path, kind: Format = "onnx", *, folder: str | Path | None = None) -> Path:
    """The file of a format, after its digests and the bundle's were compared with the report.

    Raises:
        UserError: no such export of this bundle, or a damaged one.
    """
    folder = Path(bundle) / FOLDER if folder is None else Path(folder)
    report = read_report(folder)
    if report.bundle_sha256 != storage.sha256_of(Path(bundle) / INFO_FILE):
        raise UserError(f"{folder} was exported from another bundle", field="model", remedy="export this one")
    made = report.artifacts.get(kind)
    if made is None:
        raise UserError(
            f"{folder} holds no {kind}, but {', '.join(report.artifacts)}", field="model", remedy="export it"
        )
    for name, expected in made.files.items():
        if (
            not storage.inside(str(folder), str(folder / name))
            or not (folder / name).is_file()
            or storage.sha256_of(folder / name) != expected
        ):
            raise UserError(f"{folder / name} is missing or was changed", field="model", remedy="export it again")
    return folder / made.file
