"""Whether a version draws here what it drew when it was registered: one picture from a fixed seed, by its sha256.

Registering leaves a tag `selftest.<backend>` (`onnx-fp32`, `torch-fp32`) with the hash of the picture's pixels and of
what it was drawn with: processor, libraries, threads, the network's graph. Where all of these are the same when the
version is loaded, the hashes must be. Where one differs, floating-point sums may end in other last bits, and the
picture must only look like the one in the bundle (`self_test.png`); where there is none to compare with, that is said.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from curation import storage, torchvision_ops
from curation.errors import UserError
from serving.backends import OPENERS, Backend
from serving.job import EngineConfig
from serving.trajectory import PictureTrajectory, Told, finish
from training.bundle import DiffusionModel, SelfTest, load_bundle, local_bundle, picture_digest
from training.exported import FOLDER, REPORT_FILE
from training.onnx_denoiser import Denoiser, TorchDenoiser

TAG = "selftest."
"""Of a version's tag, followed by the backend's name; its value is a `Drawn`."""
_MOST_RMS = {"fp32": 2.0, "bf16": 16.0, "int8": 24.0}  # of 255, against the bundle's picture
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "sve", "bf16", "i8mm")


class Drawn(BaseModel):
    """A self-test picture, and what it was drawn with."""

    model_config = ConfigDict(frozen=True)
    sha256: str
    processor: str
    libraries: str
    threads: int
    graph: str


@dataclass(frozen=True)
class Comparison:
    """How a self-test ended; `said` is for a person."""

    passed: bool
    said: str


def check(tags: Mapping[str, str], bundle: Path, model: DiffusionModel, backend: Backend) -> Comparison:
    """Draws the self-test picture with a backend that is ready, and compares it.

    Args:
        tags: of the version; without one of this backend, the bundle's own picture is all there is.
    """
    test = model.info.self_test
    if test is None:
        return Comparison(True, "not comparable: the bundle has no self-test")
    pixels = _draw(model, backend.denoiser, test)
    here = _drawn(pixels, bundle, model)
    then = _recorded(tags.get(TAG + backend.name))
    if then is not None and then.model_copy(update={"sha256": here.sha256}) == here:
        if then.sha256 == here.sha256:
            return Comparison(True, f"the bytes that {backend.name} drew when it was registered")
        return Comparison(False, f"{backend.name} drew other bytes when it was registered, on the same processor")
    why = "no hash of this backend was registered" if then is None else f"registered on {_difference(then, here)}"
    if here.sha256 == test.sha256:
        return Comparison(True, f"the bytes of the bundle's own picture; {why}")
    return _resembles(pixels, bundle, backend.name.partition("-")[2], why)


def tags_of(bundle: str) -> dict[str, str]:
    """What registering tells of a bundle: a tag for torch, and one for ONNX Runtime where it can be had."""
    torchvision_ops.declare()  # before diffusers, as `serving.generator.load`
    folder = local_bundle(bundle)
    model = load_bundle(folder)
    test = model.info.self_test
    if test is None:
        return {}
    denoisers: dict[str, Denoiser] = {"torch-fp32": TorchDenoiser(model)}
    if model.space.frames is None:
        # not installed, or too large for a graph made on the spot: serving has torch then, too
        with contextlib.suppress(UserError):
            denoisers["onnx-fp32"] = OPENERS["onnx"](EngineConfig(backend="onnx"), folder, model)
    drawn = {name: _drawn(_draw(model, denoiser, test), folder, model) for name, denoiser in denoisers.items()}
    return {TAG + name: picture.model_dump_json() for name, picture in drawn.items()}


def _draw(model: DiffusionModel, denoiser: Denoiser, test: SelfTest) -> np.ndarray:
    """By the way of every request; uint8 (H, W, 3), of a film (F, H, W, 3)."""
    picture = PictureTrajectory(model, Told(model, test.prompt, "", test.params.guidance_scale), test.seed, test.params)
    finish(denoiser, [picture], after_pass=lambda: None)
    with torch.inference_mode():
        pixels: np.ndarray = model.space.decode(picture.clean.to(model.device))[0]
    return pixels


def _drawn(pixels: np.ndarray, bundle: Path, model: DiffusionModel) -> Drawn:
    report = bundle / FOLDER / REPORT_FILE
    versions = {name: _version(name) for name in ("torch", "onnxruntime", "openvino")}
    return Drawn(
        sha256=picture_digest(pixels),
        processor=processor(model.device),
        libraries=", ".join(f"{name} {version}" for name, version in versions.items() if version),
        threads=torch.get_num_threads(),
        graph=storage.sha256_of(report)[:16] if report.is_file() else "made on the spot",
    )


def processor(device: torch.device) -> str:
    """What the arithmetic runs on: its kind, and of a CPU the instructions that decide which kernels are taken."""
    if device.type != "cpu":
        return torch.cuda.get_device_name(device)
    vendor, flags = "", set()
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.is_file() else ():
        name, _, value = line.partition(":")
        if name.strip() == "vendor_id":
            vendor = value.strip()
        elif name.strip().lower() in ("flags", "features"):
            flags = set(value.split())
            break
    return " ".join(part for part in (platform.machine(), vendor, *(f for f in _FLAGS if f in flags)) if part)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _recorded(tag: str | None) -> Drawn | None:
    try:
        return None if tag is None else Drawn.model_validate_json(tag)
    except ValidationError:
        return None  # a later release's


def _difference(then: Drawn, here: Drawn) -> str:
    names = ("processor", "libraries", "threads", "graph")
    pairs = {name: (getattr(then, name), getattr(here, name)) for name in names}
    return "; ".join(f"{name} {a}, here {b}" for name, (a, b) in pairs.items() if a != b)


def _resembles(pixels: np.ndarray, bundle: Path, precision: str, why: str) -> Comparison:
    file = bundle / "self_test.png"
    if pixels.ndim != 3 or not file.is_file():
        return Comparison(True, f"not comparable: {why}")
    with Image.open(file) as image:
        wanted = np.asarray(image.convert("RGB"), np.float64)
    if wanted.shape != pixels.shape:
        return Comparison(False, f"the picture is {pixels.shape[1]}x{pixels.shape[0]}, the bundle's is another size")
    rms = float(np.sqrt(np.mean((wanted - pixels) ** 2)))
    most = _MOST_RMS.get(precision, _MOST_RMS["int8"])
    said = f"{rms:.2f} of 255 (RMS) from the bundle's own picture, {most:g} allowed; {why}"
    return Comparison(rms <= most, said)
