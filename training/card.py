"""The model card that stands in every bundle as README.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.dependencies import of_info

if TYPE_CHECKING:
    from training.bundle import BundleInfo

# Below this many pictures, a model of this kind has seen each one so often that it draws them from memory.
_BY_HEART = 10_000


def model_card(info: BundleInfo) -> str:
    """Markdown: what the model is, what it was trained on, how to use it and what not to expect."""
    licences = "\n".join(f"| {name} | {count} |" for name, count in sorted(info.licences.items()))
    metrics = "\n".join(f"| {name} | {value:.6g} |" for name, value in sorted(info.metrics.items()))
    repeats = info.images_seen / max(info.training_rows, 1)
    return f"""# {info.name}

A text-conditional diffusion model for pictures of {info.image_size} x {info.image_size} pixels, trained by cleanplate.
{info.parameters / 1e6:.2f} million parameters; predicts `{info.prediction}`; {_weights(info)}.

## What it was trained on

{info.training_rows} pictures, each seen {repeats:.1f} times on average ({info.images_seen} in all).

| | |
|---|---|
| manifest | `{info.manifest_id}` |
| training set ({_digest_kind(info)}) | `{info.training_set_digest}` |
| takedown ledger | {_ledger(info)} |
| configuration | `{info.config_sha256}` |
| text encoder | {info.text_encoder}, frozen |{_made_from(info)}

The manifest names every picture, where it came from, its licence, and why it was kept.{_proofs(info)}

| licence as stated | pictures |
|---|---|
{licences}

## What to know before you use it

{_memorisation(info.training_rows, repeats)}
- It knows the captions and the style of its training set; other prompts give what the text encoder takes them for.
- The licences above are those of the training pictures. Whether a generated one needs attribution is for you to judge.
- Nothing was measured here about bias, and no safety filter is part of the weights.

## How to draw with it

```python
from training.bundle import load_bundle
from training.sampling import sample
pictures = sample(load_bundle("."), ["{_example(info)}"], [0], load_bundle(".").info.sampling)   # uint8 (1, H, W, 3)
```

`UNet2DConditionModel.from_pretrained(folder, subfolder="unet")` and `{_scheduler(info)}.from_pretrained(folder,
subfolder="scheduler")` of diffusers load it without our code. The U-Net works on `pixel_unshuffle(picture,
{info.patch_size})` of pictures in [-1, 1] and attends to the token states of `text_encoder/` with their mask.

## Measured in training

| | |
|---|---|
{metrics}
"""


def _digest_kind(info: BundleInfo) -> str:
    return "Merkle digest" if info.training_set_digest_kind == "merkle" else "sha256 over the sorted ids"


def _ledger(info: BundleInfo) -> str:
    if info.takedown_ledger_version in (None, "none"):
        return "none was asked"
    return f"`{info.takedown_ledger_version}`; {info.excluded_rows} pictures of the manifest were left out by it"


def _scheduler(info: BundleInfo) -> str:
    return "FlowMatchEulerDiscreteScheduler" if info.prediction == "flow" else "DDIMScheduler"


def _weights(info: BundleInfo) -> str:
    if info.distilled_from is None:
        length = "" if info.ema_sigma_rel is None else f" over {info.ema_sigma_rel:.3g} of the run"
        return f"the weights are a moving average{length}"
    return (
        f"distilled to draw in {info.sampling.steps} steps of one evaluation, with guidance built in.\nIt learned "
        "from a teacher, and depends on what that was trained on, too"
    )


def _made_from(info: BundleInfo) -> str:
    """Rows of the table: the models that it was made from, each with its own training set."""
    rows = []
    for dependency in of_info(info):
        trained = "what it was trained on is not on record"
        if dependency.training_set_digest is not None:
            trained = (
                f"trained on {dependency.training_rows} pictures of the manifest `{dependency.manifest_id}`, training "
                f"set `{dependency.training_set_digest}`"
            )
        elif dependency.vouched is not None:
            trained = f"{trained}; {dependency.vouched.told.replace('|', '&#124;')}"
        kind = dependency.kind if dependency.through is None else f"behind it, {dependency.kind}"
        rows.append(f"\n| {kind} | {dependency.name}, `{dependency.sha256}`; {trained} |")
    return "".join(rows)


def _proofs(info: BundleInfo) -> str:
    if info.training_set_digest_kind != "merkle":
        return ""
    return (
        " Whether one picture is\namong them is proven by its sha256, without the others: `cleanplate prove SHA256`, "
        "and `docs/verify_proof.py` checks it."
    )


def _memorisation(rows: int, repeats: float) -> str:
    if rows < _BY_HEART:
        return (
            f"- **It knows its training pictures by heart.** With {rows} pictures seen {repeats:.0f} times each, it\n"
            "  redraws them rather than invents new ones. Treat what it draws as copies of the training set."
        )
    return "- It may redraw single training pictures; compare what it draws with the manifest before you publish it."


def _example(info: BundleInfo) -> str:
    return (info.captions[0] if info.captions else "a picture").replace('"', "'")
