"""Makes the embedded CLIP: `python -m curation.embedded.train --out DIR`.

Needs npm, apt-get and, beside the project's own packages, onnxruntime, resvg-py and transformers. About an hour on one
core. Every step leaves its result in the cache folder, so that a run that was cut short goes on.

1. `text.py` distils MiniLM's sentence embeddings into a small open_clip text transformer.
2. `features.py` runs the frozen front of EfficientNet-lite0 over all pictures and augmentations.
3. Here the image tower's head learns to put pictures into the text space, from three teachers: captions (contrastive),
   the ImageNet classifier (ConSE, Norouzi et al., arXiv:1312.5650), and the same classifier on made-up features around
   its class weights, which stand in for the photographs that no package ships. The backbone stays frozen: training its
   last stage too (220 steps of 256) changed no measure by more than a point.
4. `measure.py` measures it on pictures that were held out and calibrates the safety concepts.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curation import torchvision_ops
from curation.embedded import data, features, measure, text

torchvision_ops.declare()

log = logging.getLogger("embedded")

BATCH = 256
TEMPERATURE = 0.05
STEPS, PEAK_RATE = 1500, 2e-3
AVERAGED = 0.99  # decay of the averaged weights, which are what ships


class Head(nn.Module):
    """open_clip's MLP head on EfficientNet-lite0's pooled features, with the ImageNet classifier as a teacher."""

    def __init__(self, cache: Path) -> None:
        super().__init__()
        from timm.layers import Mlp

        self.classifier = features.backbone(cache).classifier.requires_grad_(False)
        self.mlp = Mlp(1280, 2 * text.EMBED_DIM, text.EMBED_DIM, drop=(0.1, 0), bias=(True, False))

    def forward(self, pooled: Tensor) -> Tensor:
        """Features (N, 1280) -> unit vectors (N, EMBED_DIM)."""
        return F.normalize(self.mlp(pooled), dim=-1)


class Pairs:
    """The training pictures' cached features and their captions' text embeddings."""

    def __init__(self, pictures: Sequence[data.Picture], leaked: np.ndarray, cache: Path, texts: measure.Texts) -> None:
        names = [f"pass{k}" for k in range(features.PASSES)]
        self.pooled = [np.load(cache / "features" / f"{name}.f.npy") for name in names]
        self.logits = [np.load(cache / "features" / f"{name}.l.npy") for name in names]
        trained = [not (p.held_out or p.source == "tuxpaint" or bad) for p, bad in zip(pictures, leaked, strict=True)]
        self.rows = np.flatnonzero(trained)
        rows = self.rows.tolist()
        captions = {row: [*pictures[row].captions[:6], ", ".join(pictures[row].captions[:4])] for row in rows}
        distinct = list(dict.fromkeys(caption for row in rows for caption in captions[row]))
        place = {caption: i for i, caption in enumerate(distinct)}
        self.captions = {row: [place[caption] for caption in captions[row]] for row in rows}
        self.text = torch.from_numpy(texts(distinct))
        self.classes = torch.from_numpy(texts(text.class_names()))

    def batch(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(pooled features, ImageNet logits, caption embeddings) of BATCH random pictures.

        The caption is the picture's name half of the time, else any of its captions.
        """
        rows = rng.choice(self.rows, BATCH, replace=False)
        passes = rng.integers(0, features.PASSES, BATCH)
        chosen = [c[0] if rng.random() < 0.55 else int(rng.choice(c)) for c in (self.captions[row] for row in rows)]

        def gather(arrays: list[np.ndarray]) -> Tensor:
            return torch.from_numpy(np.stack([arrays[k][row] for k, row in zip(passes, rows, strict=True)])).float()

        return gather(self.pooled), gather(self.logits), self.text[chosen]


def conse(logits: Tensor, classes: Tensor, top: int = 10) -> tuple[Tensor, Tensor]:
    """ConSE targets: the mean of the top classes' name embeddings, weighted by probability; and the top probability."""
    probability, index = torch.softmax(logits, dim=1).topk(top, dim=1)
    return F.normalize((probability[..., None] * classes[index]).sum(1), dim=-1), probability[:, 0]


def loss(net: Head, pairs: Pairs, rng: np.random.Generator) -> Tensor:
    """One batch's sum of the three teachers' losses."""
    pooled, logits, captions = pairs.batch(rng)
    z = net(pooled)

    # Captions mean similar things, so targets are softened by how alike the captions themselves are.
    bank = torch.cat([captions, pairs.text[rng.integers(0, len(pairs.text), 1024)]])
    own = torch.eye(BATCH, len(bank))
    to_texts = 0.7 * own + 0.3 * torch.softmax(captions @ bank.T / 0.07, dim=1)
    to_images = 0.7 * own[:, :BATCH] + 0.3 * torch.softmax(captions @ captions.T / 0.07, dim=1)
    contrastive = F.cross_entropy(z @ bank.T / TEMPERATURE, to_texts)
    contrastive = (contrastive + F.cross_entropy(captions @ z.T / TEMPERATURE, to_images)) / 2

    target, sure = conse(logits, pairs.classes)
    imitation = 4 * ((1 - (z * target).sum(1)) * sure.sqrt()).mean()

    # Made-up features: a faded picture plus some class's weights, which the classifier takes for a photograph of it.
    n, weight = BATCH // 2, net.classifier.weight
    towards = (weight - weight.mean(0))[rng.integers(0, len(weight), n)]
    strength = torch.from_numpy(rng.uniform(1, 8, (n, 1))).float()
    fade = torch.from_numpy(rng.uniform(0.2, 1, (n, 1))).float()
    made_up = (pooled[rng.permutation(BATCH)[:n]] * fade + strength * towards).clamp_min(0)
    scores = net.classifier(made_up)
    z, target = net(made_up), conse(scores, pairs.classes)[0]
    named = F.cross_entropy(z @ pairs.classes.T / TEMPERATURE, torch.softmax(scores, dim=1))
    total: Tensor = contrastive + imitation + (1 - (z * target).sum(1)).mean() + 0.1 * named
    return total


def train_head(net: Head, pairs: Pairs) -> None:
    """Trains the MLP with AdamW and a cosine schedule; leaves the running average of its weights in place."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    average = torch.optim.swa_utils.AveragedModel(
        net.mlp, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(AVERAGED)
    )
    optimizer = torch.optim.AdamW(net.mlp.parameters(), lr=PEAK_RATE, weight_decay=0.05, betas=(0.9, 0.98))
    net.train()
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        value = loss(net, pairs, rng)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(net.mlp.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(net.mlp)
        if (step + 1) % 100 == 0:
            log.info("head, step %d: loss %.3f", step + 1, value.item())
    net.mlp.load_state_dict(average.module.state_dict())
    net.eval()


def embed(net: Head, name: str, rows: np.ndarray, cache: Path) -> np.ndarray:
    """Embeddings float32 (len(rows), EMBED_DIM) of one cached pass."""
    pooled = np.load(cache / "features" / f"{name}.f.npy")
    with torch.inference_mode():
        result: np.ndarray = net(torch.from_numpy(pooled[rows]).float()).numpy()
    return result


def evaluate(
    net: Head, pictures: Sequence[data.Picture], leaked: np.ndarray, cache: Path, texts: measure.Texts
) -> dict[str, Any]:
    """Everything the card reports, on the cached passes (fp32, before the weights are rounded to fp16)."""

    def where(source: str, held_out: bool) -> np.ndarray:
        return np.array([i for i, p in enumerate(pictures) if p.source == source and p.held_out == held_out])

    def names(rows: np.ndarray) -> list[str]:
        return [pictures[row].captions[0] for row in rows]

    tux, clipart = where("tuxpaint", False), where("openclipart", True)
    subset = tux[measure.fixed_subset([pictures[row].key for row in tux])]
    result: dict[str, Any] = {
        "tuxpaint": measure.retrieval(embed(net, "pass0", tux, cache), names(tux), texts),
        "tuxpaint, 257 pictures": measure.retrieval(embed(net, "pass0", subset, cache), names(subset), texts),
        "openclipart, held out": measure.retrieval(embed(net, "pass0", clipart, cache), names(clipart), texts),
    }
    seen, unseen = where("openmoji", False), where("openmoji", True)
    pool = texts(sorted({*names(seen), *names(unseen)}))
    for label, rows in (("trained on", seen), ("held out", unseen)):
        images = embed(net, "small32", rows, cache)
        result[f"one of 12 at 32 px, {label}"] = measure.one_of(12, images, texts(names(rows)), pool)
    held = np.array([i for i, p in enumerate(pictures) if p.held_out])
    result["concepts"] = measure.calibrate(embed(net, "pass0", held, cache), [pictures[i] for i in held], texts)
    result["pictures"] = {"leaked and dropped": int(leaked.sum()), "held out for thresholds": len(held)}
    return result


def write(out: Path, net: Head, tower: nn.Module, result: dict[str, Any], cache: Path) -> None:
    """Writes open_clip_config.json, model.safetensors (fp16) and thresholds.json."""
    import open_clip
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    vision = {
        "timm_model_name": "tf_efficientnet_lite0",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "mlp",
        "image_size": features.IMAGE_SIZE,
    }
    half, size = [0.5] * 3, [features.IMAGE_SIZE] * 2
    towers = {"vision_cfg": vision, "text_cfg": text.TEXT_CFG}
    config = {
        "model_cfg": {"embed_dim": text.EMBED_DIM, "custom_text": True, **towers},
        "preprocess_cfg": {"mean": half, "std": half, "interpolation": "bicubic", "size": size},
    }
    (out / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    # Only the architecture is wanted here, also where older weights lie in the folder.
    model = open_clip.create_model(f"local-dir:{out}", load_weights=False)
    trunk = features.backbone(cache).state_dict()
    model.visual.trunk.load_state_dict({key: trunk[key] for key in model.visual.trunk.state_dict()})
    model.visual.head.mlp.load_state_dict(net.mlp.state_dict())
    model.text.load_state_dict(tower.state_dict())
    model.logit_scale.data.fill_(math.log(1 / TEMPERATURE))
    state = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    save_file({key: value.contiguous() for key, value in state.items()}, out / "model.safetensors")
    thresholds = {"model": "embedded", "concepts": result["concepts"]}
    (out / "thresholds.json").write_text(json.dumps(thresholds, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for config, weights and thresholds")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/cleanplate/embedded").expanduser())
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    cache: Path = arguments.cache
    cache.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)

    tower = text.distil(cache)
    texts = text.embedder(tower)
    pictures, drawn, hashes = features.rasters(data.everything(cache), cache)
    features.compute(drawn, cache)
    leaked = features.leaked(pictures, drawn, hashes)
    pairs = Pairs(pictures, leaked, cache, texts)
    log.info("%d pictures to train on, %d dropped as leaked", len(pairs.rows), leaked.sum())
    net = Head(cache)
    train_head(net, pairs)
    result = evaluate(net, pictures, leaked, cache, texts)
    log.info("final: %s", json.dumps(result, indent=2))
    write(arguments.out, net, tower, result, cache)


if __name__ == "__main__":
    main()
