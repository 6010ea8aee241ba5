"""An evaluation for a person: `report.md`, and the plot of its metrics and losses."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from training.evaluate import Evaluation, Measured
    from training.memorization import Memorization

_COLUMNS = 4  # of panels


def page(found: Evaluation) -> str:
    """Markdown: the metrics beside their floors, the losses, the memorisation gate, and how it was measured."""
    lines = [
        f"# Evaluation of {found.model}",
        "",
        f"After {found.images_seen:,} images; manifest `{found.manifest_id[:16]}`, judged by the CLIP {found.clip}. "
        "In brackets are 95 % intervals. The floor is the same measure of real pictures that the model was not trained "
        "on.",
        "",
        "| metric | better | samples | floor |",
        "|---|---|---|---|",
        *(f"| {name} | {m.better} | {told(m.samples)} | {told(m.floor)} |" for name, m in found.metrics.items()),
        "",
        "![metrics and losses](metrics.png)",
        "",
        "## Loss by log-SNR",
        "",
        "| log-SNR | held out | trained on |",
        "|---|---|---|",
        *(
            f"| {b.log_snr.low:.1f} to {b.log_snr.high:.1f} | {told(b.held_out)} | {told(b.trained)} |"
            for b in found.loss
        ),
        "",
        *_memorization(found.memorization),
        "## How it was measured",
        "",
        f"{len(found.prompts)} pictures, noise seeds {found.noise_seeds[0]} to {found.noise_seeds[-1]}, "
        f"{found.sampling.steps} steps of {found.sampling.sampler}, guidance {found.sampling.guidance_scale:g}; seed "
        f"{found.seed}. The prompts stand in `result.json`.",
        f"Features by {', '.join(f'{name} ({digest})' for name, digest in found.extractors.items())}. Distances "
        "depend on how many pictures there are and on whose features they are of: compare equal ones only.",
        "",
        *(f"- {note}" for note in found.notes),
    ]
    return "\n".join(lines) + "\n"


def told(measured: Measured | None) -> str:
    """A value, its interval, and of how many pictures."""
    if measured is None:
        return "not known"
    return f"{measured.value:.4g} [{measured.interval.low:.4g}, {measured.interval.high:.4g}] of {measured.n:,}"


def _memorization(found: Memorization | None) -> list[str]:
    if found is None:
        return []
    false = "not known" if found.false_positives is None else f"{found.false_positives:.1%}"
    lines = [
        "## Memorisation",
        "",
        f"**{found.verdict}**: {found.why}.",
        "",
        f"Of {found.samples:,} samples {found.share:.1%} [{found.interval.low:.1%}, {found.interval.high:.1%}] are "
        f"copies of one of {found.pictures:,} training pictures ({found.by_space['pixel']:.1%} by pixels, "
        f"{found.by_space['clip']:.1%} by CLIP); {found.weighted:.1%} where a copy of what was shown more often than "
        f"the typical picture counts for more. Of {found.held_out:,} held-out pictures are taken for copies: {false}.",
        "",
    ]
    if found.copied:
        lines += ["| training picture | samples | copies of it in the set | times shown |", "|---|---|---|---|"]
        lines += [f"| `{c.id[:12]}` | {c.drawn} | {c.copies} | {c.seen:,} |" for c in found.copied[:20]]
        lines.append("")
    lines += ["![samples beside their nearest training pictures](pairs.png)", ""]
    if found.withheld:
        lines += [f"{found.withheld} of the closest pairs are not shown: their training pictures are revoked.", ""]
    return lines


def curves(found: Sequence[Evaluation]) -> bytes:
    """A PNG of several evaluations of one run: a panel for each metric over the images seen, and one for the losses."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    images = [evaluation.images_seen for evaluation in found]
    values = [evaluation.values() for evaluation in found]
    names = [name for name in found[0].metrics if all(name in told for told in values)]
    rows = -(-(len(names) + 1) // _COLUMNS)
    figure = Figure(figsize=(3.2 * _COLUMNS, 2.6 * rows), layout="constrained")
    for number, name in enumerate(names, 1):
        axes = figure.add_subplot(rows, _COLUMNS, number)
        axes.plot(images, [told[name] for told in values], "o-", label="samples")
        low, high = ([told[f"{name}_{end}"] for told in values] for end in ("low", "high"))
        axes.fill_between(images, low, high, alpha=0.2)
        if all(f"{name}_floor" in told for told in values):
            axes.plot(images, [told[f"{name}_floor"] for told in values], "k--", label="floor")
        axes.set_title(f"{name} ({found[0].metrics[name].better} is better)", fontsize=8)
    axes = figure.add_subplot(rows, _COLUMNS, len(names) + 1)
    for kind in ("trained", "held_out"):
        if all(f"loss_{kind}" in told for told in values):
            axes.plot(images, [told[f"loss_{kind}"] for told in values], "o-", label=kind.replace("_", " "))
            axes.legend(fontsize=7)
    axes.set_title("loss", fontsize=8)
    page = io.BytesIO()
    FigureCanvasAgg(figure).print_png(page)
    return page.getvalue()


def plot(found: Evaluation, path: Path) -> None:
    """A panel for each metric with its floor, and one for the losses."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = len(found.metrics) + bool(found.loss)
    columns = min(4, panels)
    figure = Figure(figsize=(3.2 * columns, 2.6 * -(-panels // columns)), layout="constrained")
    for number, (name, metric) in enumerate(found.metrics.items(), 1):
        axes = figure.add_subplot(-(-panels // columns), columns, number)
        for place, (label, value) in enumerate((("samples", metric.samples), ("floor", metric.floor))):
            if value is not None:
                low, high = value.value - value.interval.low, value.interval.high - value.value
                axes.errorbar([place], [value.value], yerr=[[max(low, 0)], [max(high, 0)]], fmt="o", capsize=4)
                axes.annotate(label, (place, value.value), textcoords="offset points", xytext=(8, 0))
        axes.set_title(f"{name} ({metric.better} is better)", fontsize=8)
        axes.set_xticks([])
        axes.set_xlim(-0.5, 2)
    if found.loss:
        axes = figure.add_subplot(-(-panels // columns), columns, panels)
        middle = [(bucket.log_snr.low + bucket.log_snr.high) / 2 for bucket in found.loss]
        axes.plot(middle, [bucket.trained.value for bucket in found.loss], "o-", label="trained on")
        held = [(x, bucket.held_out.value) for x, bucket in zip(middle, found.loss, strict=True) if bucket.held_out]
        if held:
            axes.plot(*zip(*held, strict=True), "s--", label="held out")
        axes.set_title("loss by log-SNR", fontsize=8)
        axes.legend(fontsize=7)
    FigureCanvasAgg(figure).print_png(str(path))
