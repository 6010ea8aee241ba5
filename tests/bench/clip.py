"""How well the shipped CLIP finds captions of pictures it was not trained on: `python -m tests.bench.clip`.

Recomputed from the shipped weights on Tux Paint's stamps (Debian's tuxpaint-stamps-default, fetched with apt-get if it
is not in the cache). Every stamp is cut to what is drawn and centred on a white square. Prints a table and, as its last
line, one JSON object with the ratios.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from curation.clip import ClipConfig
from curation.embedded import data, measure

# ImageNet classifier -> MiniLM embeddings of class names (ConSE), measured on the same stamps at 192 px.
CONSE = {
    "all": {"R@1": 14.5, "R@5": 23.2, "R@10": 26.6, "median rank": 133.5},
    "257": {"R@1": 19.1, "R@5": 31.5, "R@10": 36.6, "median rank": 43.0},
}


def main() -> None:
    import torch
    from PIL import Image

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/cleanplate/embedded").expanduser())
    parser.add_argument("--model", default="embedded", help="anything ClipConfig.model takes")
    parser.add_argument("--weights", help="anything ClipConfig.weights takes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.cache.mkdir(parents=True, exist_ok=True)

    clip = ClipConfig(model=arguments.model, weights=arguments.weights, device="cpu").build()
    stamps, pixels = [], []
    for stamp in data.tuxpaint(arguments.cache):
        drawn = data.raster(stamp)
        if drawn is not None:
            stamps.append(stamp)
            pixels.append(clip.prepare(Image.fromarray(data.over(drawn))))
    begun = time.perf_counter()
    images = clip.embed_images(np.stack(pixels))
    speed = len(images) / (time.perf_counter() - begun)

    names = [stamp.captions[0] for stamp in stamps]
    subset = measure.fixed_subset([stamp.key for stamp in stamps])
    rows = {
        "all": measure.retrieval(images, names, clip.embed_texts),
        "257": measure.retrieval(images[subset], [names[i] for i in subset], clip.embed_texts),
    }
    columns = ["images", "captions", "R@1", "R@5", "R@10", "median rank"]
    print(f"{clip.name}: caption of a Tux Paint stamp, one core, {speed:.1f} pictures/s")
    print(f"{'':24}" + "".join(f"{column:>13}" for column in columns))
    for label, row in rows.items():
        print(f"{'stamps: ' + label:24}" + "".join(f"{row[column]:>13}" for column in columns))
        baseline = {**row, **CONSE[label]}
        print(f"{'  ConSE, no training':24}" + "".join(f"{baseline[column]:>13}" for column in columns))
    ratios = {}
    for label, row in rows.items():
        for column in ("R@1", "R@5", "R@10"):
            ratios[f"{column} over ConSE, {label}"] = round(row[column] / CONSE[label][column], 3)
        ratios[f"median rank of ConSE over ours, {label}"] = round(CONSE[label]["median rank"] / row["median rank"], 2)
    print(json.dumps({"ratios": ratios, "measured": rows, "pictures_per_second": round(speed, 1)}))


if __name__ == "__main__":
    main()
