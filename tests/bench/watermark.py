"""How well the mark is found after what happens to pictures: `python -m tests.bench.watermark`.

Drawings (OpenMoji's, which the demo is trained on, and with `--stamps FOLDER` any others) and parts of the photographs
that scikit-learn and matplotlib ship, at the sizes that models are trained at, each under a key of its own. Prints a
table: of the marked pictures, how many are found at the stated false-positive rate, and of how many the payload is read
back. Then how many unmarked pictures are taken for marked ones, and what signing a file (C2PA) takes. Ends with one
JSON line.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines import pictures
from serving import identity
from serving.credentials import Origin, Signer, read
from serving.finishing import encode
from serving.identity import CredentialsConfig
from serving.watermark import FALSE_POSITIVE_RATE, Detection, Watermark, payload_bits

ORIGIN = Origin(
    image_id="img_" + "0a" * 16, model="drawings", model_version="3", manifest_id="m" * 64, seed=7, sampler="ddim",
    steps=20, guidance_scale=2.5, backend="onnx-fp32", prompt_commitment="c" * 64, watermark="c0ffee42",
    pixels_sha256="d" * 64,
)  # fmt: skip
SIZES = (32, 64, 128, 256, 512)
PHOTOGRAPHS = (
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
    ("sklearn", "datasets/images/china.jpg"),
)


def as_file(pixels: np.ndarray, kind: str, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, quality=quality)
    with Image.open(buffer) as image:
        return np.asarray(image.convert("RGB"))


def scaled(pixels: np.ndarray, factor: float) -> np.ndarray:
    size = (round(pixels.shape[1] * factor), round(pixels.shape[0] * factor))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def cropped(pixels: np.ndarray, share: float) -> np.ndarray:
    """A window with that share of the area, not in the middle."""
    height, width = pixels.shape[:2]
    high, wide = round(height * share**0.5), round(width * share**0.5)
    top, left = (height - high) // 3, (width - wide) * 2 // 3
    return np.ascontiguousarray(pixels[top : top + high, left : left + wide])


def noisy(pixels: np.ndarray, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, sigma, pixels.shape)
    return np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)


DAMAGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "untouched": lambda p: p,
    "JPEG 90": lambda p: as_file(p, "JPEG", 90),
    "JPEG 70": lambda p: as_file(p, "JPEG", 70),
    "JPEG 50": lambda p: as_file(p, "JPEG", 50),
    "JPEG 30": lambda p: as_file(p, "JPEG", 30),
    "WebP 90": lambda p: as_file(p, "WEBP", 90),
    "WebP 70": lambda p: as_file(p, "WEBP", 70),
    "WebP 50": lambda p: as_file(p, "WEBP", 50),
    "to 75 %": lambda p: scaled(p, 0.75),
    "to 50 %": lambda p: scaled(p, 0.5),
    "to 50 % and back": lambda p: scaled(scaled(p, 0.5), 2.0),
    "to 200 %": lambda p: scaled(p, 2.0),
    "noise, sigma 4": lambda p: noisy(p, 4.0),
    "noise, sigma 8": lambda p: noisy(p, 8.0),
    "mirrored": lambda p: np.ascontiguousarray(p[:, ::-1]),
    "turned by 90°": lambda p: np.ascontiguousarray(np.rot90(p)),
    "cropped to 80 %": lambda p: cropped(p, 0.8),
    "  and JPEG 70": lambda p: as_file(cropped(p, 0.8), "JPEG", 70),
    "cropped to 60 %": lambda p: cropped(p, 0.6),
    "cropped to 40 %": lambda p: cropped(p, 0.4),
    "to 75 %, JPEG 70": lambda p: as_file(scaled(p, 0.75), "JPEG", 70),
}


def drawings(size: int, count: int) -> list[np.ndarray]:
    symbols = pictures._DRAWINGS
    found = []
    for symbol in symbols[:: max(1, len(symbols) // count)][:count]:
        data = pictures.rendered(f"{ord(symbol):X}", max(size, 128), background="white")
        with Image.open(io.BytesIO(data)) as image:
            found.append(np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)))
    return found


def stamps(folder: Path, size: int, count: int) -> list[np.ndarray]:
    files = sorted(folder.rglob("*.png"))
    found = []
    for path in files[:: max(1, len(files) // count)][:count]:
        with Image.open(path) as image:
            picture = image.convert("RGBA")
        base = Image.new("RGBA", picture.size, "white")
        base.alpha_composite(picture)
        found.append(np.asarray(base.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)))
    return found


def photographs(size: int, count: int, seed: int = 0) -> list[np.ndarray]:
    """Squares from anywhere in the photographs, none larger than what it is made of."""
    chance, wholes = random.Random(seed), []
    for package, path in PHOTOGRAPHS:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            continue
        with Image.open(Path(spec.origin).parent / path) as image:
            wholes.append(image.convert("RGB"))
    found = []
    for index in range(count):
        whole = wholes[index % len(wholes)]
        side = chance.randint(min(size, min(whole.size)), min(whole.size))
        left, top = chance.randint(0, whole.width - side), chance.randint(0, whole.height - side)
        box = (left, top, left + side, top + side)
        found.append(np.asarray(whole.resize((size, size), Image.Resampling.LANCZOS, box=box)))
    return found


def measure(size: int, chosen: list[np.ndarray]) -> tuple[dict[str, list[tuple[Detection, str]]], dict[str, float]]:
    """By damage, what was found of each picture and which payload had been written; and what marking costs."""
    found: dict[str, list[tuple[Detection, str]]] = {name: [] for name in DAMAGES}
    embedding, detecting, psnr = [], [], []
    for index, plain in enumerate(chosen):
        mark = Watermark(b"bench %d" % index)
        payload = random.Random(index).randbytes(4)
        mark.embed(plain, payload)  # the key's carriers are drawn once
        begun = time.perf_counter()
        done = mark.embed(plain, payload)
        embedding.append(time.perf_counter() - begun)
        psnr.append(done.psnr)
        written = payload.hex()[: (payload_bits(size, size) or 0) // 4]
        for name, damage in DAMAGES.items():
            damaged = damage(done.pixels)
            begun = time.perf_counter()
            found[name].append((mark.detect(damaged), written))
            if name == "untouched":
                detecting.append(time.perf_counter() - begun)
    costs = {"embed_ms": np.median(embedding) * 1e3, "detect_ms": np.median(detecting) * 1e3}
    return found, {**costs, "psnr": float(np.median(psnr)), "least_psnr": min(psnr)}


def false_alarms(sizes: list[int], keys: int) -> tuple[int, int, float]:
    """Unmarked pictures under many keys: alarms, tries, and the largest statistic of a single hypothesis."""
    alarms, tries, highest = 0, 0, 0.0
    for size in sizes:
        for plain in drawings(size, 8) + photographs(size, 8, seed=1):
            for key in range(keys):
                one = Watermark(b"unmarked %d" % key).detect(plain, search=False)
                alarms, tries, highest = alarms + one.present, tries + 1, max(highest, one.statistic)
    return alarms, tries, highest


def signing(sizes: list[int]) -> dict[int, dict[str, float]]:
    """By size, milliseconds to sign a PNG and to read its credentials again, and how many bytes it grows by."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        config = CredentialsConfig(folder=f"{folder}/credentials")
        identity.ensure(config)
        who = identity.load(config)
        signer = Signer(who)
        for size in sizes:
            data = encode(drawings(size, 1)[0], "png", 100)
            signs, reads, signed = [], [], b""
            for _ in range(20):
                begun = time.perf_counter()
                signed = signer.sign(data, "image/png", ORIGIN)
                signs.append(time.perf_counter() - begun)
                begun = time.perf_counter()
                read(signed, who.trust)
                reads.append(time.perf_counter() - begun)
            ms = {"sign_ms": float(np.median(signs)) * 1e3, "read_ms": float(np.median(reads)) * 1e3}
            found[size] = {**ms, "bytes": len(signed) - len(data)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=24, help="of a size, half of them drawings")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--keys", type=int, default=40, help="for the false alarms, of each picture")
    parser.add_argument("--stamps", type=Path, help="a folder of PNG drawings to add, Tux Paint's for instance")
    arguments = parser.parse_args()
    half = arguments.pictures // 2
    results, costs = {}, {}
    for size in arguments.sizes:
        chosen = drawings(size, half) + photographs(size, half)
        if arguments.stamps is not None:
            chosen += stamps(arguments.stamps, size, half)
        results[size], costs[size] = measure(size, chosen)
    show(results, costs, arguments.pictures)
    alarms, tries, highest = false_alarms([size for size in arguments.sizes if size <= 128], arguments.keys)
    print(f"\nunmarked: {alarms} of {tries} taken for marked (stated rate {FALSE_POSITIVE_RATE:g}); ", end="")
    print(f"the largest statistic was {highest:.2f}")
    for size, cost in signing(arguments.sizes).items():
        costs[size] |= cost
    for label, key in (("to sign, ms", "sign_ms"), ("to read again, ms", "read_ms"), ("bytes more", "bytes")):
        print(f"{label:20}" + "".join(f"{costs[size][key]:>14.1f}" for size in costs))
    ratios = {"false_alarms": alarms}
    for size, found in results.items():
        for name, key in (("untouched", "untouched"), ("JPEG 70", "jpeg70"), ("to 75 %", "resized75")):
            ratios[f"found_{key}_{size}"] = round(np.mean([one.present for one, _ in found[name]]), 3)
        ratios[f"found_cropped80_{size}"] = round(np.mean([one.present for one, _ in found["cropped to 80 %"]]), 3)
    print(json.dumps({"ratios": ratios, "costs": costs}))


def show(
    results: dict[int, dict[str, list[tuple[Detection, str]]]], costs: dict[int, dict[str, float]], n: int
) -> None:
    print(f"found / payload read back, in % of {n} pictures (stated false-positive rate {FALSE_POSITIVE_RATE:g})")
    print(f"{'':20}" + "".join(f"{f'{size} x {size}':>14}" for size in results))
    for name in DAMAGES:
        cells = []
        for found in results.values():
            there = 100 * np.mean([one.present for one, _ in found[name]])
            read = 100 * np.mean([one.payload == written for one, written in found[name]])
            written = found[name][0][1]
            cells.append(f"{there:.0f} / {read:.0f}" if written else f"{there:.0f} / -")
        print(f"{name:20}" + "".join(f"{cell:>14}" for cell in cells))
    wrong = sum(
        one.payload not in (None, written)
        for found in results.values()
        for row in found.values()
        for one, written in row
    )
    print(f"payloads read wrongly: {wrong}")
    for label, key in (("PSNR, median dB", "psnr"), ("PSNR, least dB", "least_psnr")):
        print(f"{label:20}" + "".join(f"{costs[size][key]:>14.1f}" for size in results))
    for label, key in (("to mark, ms", "embed_ms"), ("to detect, ms", "detect_ms")):
        print(f"{label:20}" + "".join(f"{costs[size][key]:>14.1f}" for size in results))


if __name__ == "__main__":
    main()
