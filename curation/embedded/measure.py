"""How good the embedded CLIP is: retrieval, picking one name of twelve, and safety concepts with their thresholds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from curation.embedded.data import Picture, over

Texts = Callable[[Sequence[str]], np.ndarray]  # texts -> float32 (N, dim), unit rows
FALSE_POSITIVES = 0.01
ENOUGH = 10  # positives below which a recall means little


@dataclass(frozen=True)
class Concept:
    """What is asked of the text tower, and which tags make a picture a positive or, being ambiguous, leave it out."""

    prompts: tuple[str, ...]
    words: frozenset[str]
    unclear: frozenset[str] = frozenset()


def _concept(prompts: str, words: str, unclear: str = "") -> Concept:
    asked = [template.format(word) for word in prompts.split(", ") for template in ("{}", "a drawing of {}")]
    return Concept(tuple(asked), frozenset(words.split()), frozenset(unclear.split()))


CONCEPTS = {
    "weapon": _concept(
        "a weapon, a gun, a pistol, a rifle, a sword, a dagger, a bomb",
        "weapon weapons gun guns pistol rifle revolver sword swords dagger grenade bomb missile cannon shotgun machete",
        "knife tank axe bow arrow war military army shield water hammer",
    ),
    "nudity": _concept(
        "nudity, a naked woman, a naked man, a nude body", "nude naked nudity nudes breast", "body bath"
    ),
    "blood": _concept(
        "blood, a bleeding wound, a drop of blood, gore",
        "blood bloody bleeding gore wound",
        "type group:symbols injury",
    ),
    "drugs": _concept(
        "drugs, a syringe, pills, marijuana, cannabis leaf, cocaine",
        "drug drugs marijuana cannabis hemp heroin cocaine syringe pill pills",
        "medicine medical vaccine group:symbols",
    ),
    "alcohol": _concept(
        "alcohol, a bottle of beer, a glass of wine, a cocktail, whisky, champagne",
        "alcohol beer wine whisky whiskey cocktail champagne sake liquor vodka martini booze tequila rum",
        "bar bottle glass drink clink",
    ),
    "tobacco": _concept(
        "tobacco, a cigarette, a cigar, a person smoking, a smoking pipe",
        "tobacco cigarette cigarettes cigar smoking smoker ashtray",
        "smoke pipe lighter",
    ),
}


def retrieval(images: np.ndarray, names: Sequence[str], texts: Texts) -> dict[str, float]:
    """Ranks every distinct name for each picture. images: float32 (N, dim), unit rows; names[i] is the right one.

    Returns:
        images, captions (counts), R@1, R@5, R@10 in percent, and the median rank (1 is best).
    """
    candidates = list(dict.fromkeys(names))
    similarity = images @ texts(candidates).T
    place = {name: i for i, name in enumerate(candidates)}
    own = similarity[np.arange(len(names)), [place[name] for name in names]]
    ranks = 1 + (similarity > own[:, None]).sum(axis=1)
    found = {f"R@{k}": round(100 * float((ranks <= k).mean()), 1) for k in (1, 5, 10)}
    return {"images": len(names), "captions": len(candidates), **found, "median rank": float(np.median(ranks))}


def fixed_subset(keys: Sequence[str], count: int = 257) -> np.ndarray:
    """int (count,): positions of a fixed choice of keys, the ones whose hashes come first."""
    order = sorted(range(len(keys)), key=lambda i: hashlib.sha256(keys[i].encode()).digest())
    return np.array(sorted(order[:count]))


def one_of(ways: int, images: np.ndarray, own: np.ndarray, others: np.ndarray, draws: int = 200) -> float:
    """Percentage of draws in which a picture is nearer to its own name than to ways - 1 other random names.

    images and own: float32 (N, dim); others: (M, dim), the pool of names. A draw of the own name counts as no rival.
    """
    rng = np.random.default_rng(0)
    right, rivals = np.sum(images * own, axis=1), images @ others.T
    rivals[own @ others.T > 0.9999] = -1
    wins = [
        (right[:, None] > np.take_along_axis(rivals, rng.integers(0, len(others), (len(images), ways - 1)), 1)).all(1)
        for _ in range(draws)
    ]
    return round(100 * float(np.mean(wins)), 1)


def small(rgba: np.ndarray, side: int, blur: float = 0.5) -> Image.Image:
    """A drawing as a tiny diffusion model would show it: over white, `side` pixels, slightly blurred."""
    picture = Image.fromarray(over(rgba)).resize((side, side), Image.Resampling.BOX)
    return picture.filter(ImageFilter.GaussianBlur(blur))


def calibrate(images: np.ndarray, pictures: Sequence[Picture], texts: Texts) -> dict[str, dict[str, Any]]:
    """Thresholds by concept, from pictures the model was not trained on.

    The threshold leaves one negative in a hundred above it. It needs no positives; recall and AUROC do, so a concept
    with fewer than ENOUGH positives is marked `"calibrated": false`: its threshold bounds false alarms and promises
    nothing about what is found.
    """
    found = {}
    for name, concept in CONCEPTS.items():
        mean = texts(list(concept.prompts)).mean(axis=0)
        scores = images @ (mean / np.linalg.norm(mean))
        positive = np.array([bool(picture.tags & concept.words) for picture in pictures])
        unclear = np.array([bool(picture.tags & concept.unclear) for picture in pictures])
        if name == "blood":
            positive &= ~unclear  # the buttons of the blood types show letters
        negative = scores[~positive & ~unclear]
        threshold = float(np.quantile(negative, 1 - FALSE_POSITIVES))
        hits = scores[positive]
        pairs = (hits[:, None] > negative[None]).mean() if len(hits) else None
        found[name] = {
            "prompts": list(concept.prompts),
            "threshold": round(threshold, 4),
            "auroc": None if pairs is None else round(float(pairs), 3),
            "false_positive_rate": FALSE_POSITIVES,
            "recall": round(float((hits > threshold).mean()), 3) if len(hits) else None,
            "positives": len(hits),
            "negatives": len(negative),
            "calibrated": len(hits) >= ENOUGH,
        }
    return found
