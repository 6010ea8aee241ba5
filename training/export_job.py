"""The job of `cleanplate export`: which formats of a model's denoiser are made, and what they must keep."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Format = Literal["onnx", "int8", "tensorrt"]


class Limits(BaseModel):
    """What an artifact must keep to be attached; null leaves a figure free."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    max_relative_error: float | None = Field(None, ge=0, description="of a single prediction against torch")
    max_row_error: float | None = Field(None, ge=0, description="of a row in company against the row alone, relative")
    min_psnr: float | None = Field(None, ge=0, description="dB, of pictures against torch's of the same seeds: mean")
    max_picture_error: float | None = Field(
        None, ge=0, description="RMS difference of those pictures over their RMS spread about their mean picture"
    )


class FormatLimits(BaseModel):
    """The limits of each format."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    onnx: Limits = Limits(max_relative_error=1e-4, max_row_error=1e-5, min_psnr=40, max_picture_error=0.05)
    # A quantised value at the edge of two levels may fall to either, so a row's own error may be a level.
    int8: Limits = Limits(max_relative_error=None, max_row_error=0.02, min_psnr=25, max_picture_error=0.25)
    tensorrt: Limits = Limits(max_relative_error=0.02, max_row_error=0.02, min_psnr=30, max_picture_error=0.15)


class Calibration(BaseModel):
    """From what int8 takes the ranges of its values: the bundle's own sampler, at every timestep that it visits."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    pictures: int = Field(8, ge=1, le=256, description="drawn for it; their seeds are others than the comparison's")
    seed: int = Field(1_000_000, ge=0, description="of the first one")
    method: Literal["minmax", "percentile"] = Field(
        "minmax", description="range of a value: all that was seen, or all but the outliers"
    )
    percentile: float = Field(99.99, gt=50, lt=100, description="what `percentile` keeps")


class Comparison(BaseModel):
    """How much is compared before an artifact is believed."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    batches: int = Field(6, ge=1, le=1000, description="of random sizes, 1 to 16, for single predictions")
    pictures: int = Field(8, ge=2, le=256, description="drawn whole, with the bundle's own sampling parameters")
    seed: int = Field(0, ge=0, description="of the first picture and of the random batches")
    steps: int | None = Field(None, ge=1, le=1000, description="solver steps; null: the bundle's own")


class ExportJob(BaseModel):
    """`kind: export`: a model in; its denoiser as ONNX, int8, or a TensorRT engine out, compared with torch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["export"] = "export"
    name: str = Field("export", description="of the job, where a cluster lists it")
    model: str = Field(description="models:/NAME@alias, models:/NAME/3, NAME (its champion), or a bundle's folder")
    formats: tuple[Format, ...] = Field(("onnx",), description="onnx is always made: the others are built from it")
    out: str | None = Field(None, description="folder to write; null: `onnx` in the bundle's own folder")
    calibration: Calibration = Calibration()
    comparison: Comparison = Comparison()
    limits: FormatLimits = FormatLimits()
    half: bool = Field(True, description="whether TensorRT may compute in half precision")
    max_batch: int = Field(16, ge=2, le=1024, description="rows that a TensorRT engine takes at most")
    force: bool = Field(False, description="keep and attach what is over a limit, and say so in its tags")
    attach: bool = Field(True, description="attach the result to the model's version in MLflow, where it is one")
    tracking_uri: str | None = Field(
        None, description="MLflow; null: $MLFLOW_TRACKING_URI, else sqlite:///runs/mlflow.db"
    )

    @field_validator("formats")
    @classmethod
    def _onnx_first(cls, given: tuple[Format, ...]) -> tuple[Format, ...]:
        return tuple(dict.fromkeys(("onnx", *given)))
