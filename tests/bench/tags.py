"""Whether the confidence of zero-shot tags is one: `python -m tests.bench.tags`.

The shipped CLIP names drawings it was not trained on (Tux Paint's stamps, OpenMoji's held-out fifth) from vocabularies
that have their names, and some that have not. Prints the temperature of the best likelihood, the expected calibration
error at temperature 1 (ten bins of equal size), and what is said at a confidence of 0.5 or more; as its last line, one
JSON object.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from curation.captions import TagCaptions
from curation.clip import Clip, ClipConfig
from curation.embedded import data

_SIZES = ((10, 20), (50, 6), (200, 3), (None, 1))  # words of a vocabulary (None: all), and how many are drawn


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/cleanplate/embedded").expanduser())
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.cache.mkdir(parents=True, exist_ok=True)
    clip = ClipConfig(device="cpu").build()
    held_out = [picture for picture in data.openmoji(arguments.cache) if picture.held_out]
    columns = ("words", "temperature", "ece", "accuracy", "said", "right", "said_outside")
    print(f"{'':12}" + "".join(f"{name:>14}" for name in columns))
    figures: dict[str, dict[str, float]] = {}
    for source, pictures in (("tuxpaint", data.tuxpaint(arguments.cache)), ("openmoji", held_out)):
        embeddings, names = _embedded(clip, pictures)
        rng, known = np.random.default_rng(0), sorted(set(names))
        for size, draws in _SIZES:
            words = size or len(known)
            drawn = [_measure(clip, embeddings, names, rng.permutation(known)[:words].tolist()) for _ in range(draws)]
            row = {name: round(float(np.nanmean([d[name] for d in drawn])), 3) for name in columns[1:]}
            figures[f"{source} {words}"] = row
            print(f"{source:12}{words:>14}" + "".join(f"{value:>14}" for value in row.values()))
    print(json.dumps({name: {k: v for k, v in row.items() if v == v} for name, row in figures.items()}))


def _embedded(clip: Clip, pictures: list[data.Picture]) -> tuple[np.ndarray, list[str]]:
    from PIL import Image

    pixels, names = [], []
    for picture in pictures:
        drawn = data.raster(picture)
        if drawn is not None:
            pixels.append(clip.prepare(Image.fromarray(data.over(drawn))))
            names.append(picture.captions[0].rstrip("."))
    return clip.embed_images(np.stack(pixels)), names


def _measure(clip: Clip, embeddings: np.ndarray, names: list[str], vocabulary: list[str]) -> dict[str, float]:
    tags = TagCaptions(vocabulary=tuple(vocabulary)).build(clip)
    place = {word: i for i, word in enumerate(vocabulary)}
    shares = np.array([tags.confidences(embedding) for embedding in embeddings])
    inside = np.array([name in place for name in names])
    own = np.array([place[name] for name in names if name in place])
    logits, surest, right = np.log(shares[inside]), shares[inside].max(axis=1), shares[inside].argmax(axis=1) == own
    grid = np.arange(0.3, 2.5, 0.05)
    likelihoods = [_log_softmax(logits / t)[np.arange(len(own)), own].mean() for t in grid]
    bins = np.array_split(np.argsort(surest), min(10, len(own)))
    said = surest >= 0.5
    outside = shares[~inside].max(axis=1) if (~inside).any() else np.array([np.nan])
    return {
        "temperature": float(grid[np.argmax(likelihoods)]),
        "ece": sum(len(b) * abs(surest[b].mean() - right[b].mean()) for b in bins) / len(own),
        "accuracy": right.mean(),
        "said": said.mean(),
        "right": right[said].mean() if said.any() else np.nan,
        "said_outside": float((outside >= 0.5).mean()) if (~inside).any() else np.nan,
    }


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    logs: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logs


if __name__ == "__main__":
    main()
