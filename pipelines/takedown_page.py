"""The plan of a takedown as a page for a person: `plan.md`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.takedown_jobs import Retraining
    from pipelines.takedown_planner import Plan, ToDerive


def page(plan: Plan) -> str:
    """Markdown: what was asked, what is affected, what to do, in order."""
    lines = [
        f"# Takedown {plan.entry[:12]}",
        "",
        f"Asked by {_text(plan.requester)}, on this ground: {_text(plan.ground)}. Entry `{plan.entry}` of the ledger "
        f"`{plan.ledger}` (version `{plan.ledger_version[:16]}`).",
        "",
        "## Manifests",
        "",
        *([_manifest_row(d) for d in plan.manifests] or ["None that is known keeps any of the pictures."]),
        "",
        "## Model versions",
        "",
    ]
    if plan.versions:
        lines += ["| version | aliases | pictures | times seen | first at image | |", "|---|---|---|---|---|---|"]
    for v in plan.versions:
        first = "" if v.first is None else f"{v.first + 1:,}"
        told = v.why or "" if v.certain else f"unknown: treat as affected. {v.why or ''}"
        told = ". ".join([*(f"through its {through}" for through in v.through), *([told] if told else [])])
        aliases = ", ".join(v.aliases)
        lines.append(f"| {v.model} | {aliases} | {v.pictures:,} | {v.times:,} | {first} | {_text(told)} |")
    lines += ["" if plan.versions else "None that is known was trained on any of the pictures.", ""]
    lines += [f"Examined and not affected: {', '.join(plan.unaffected)}.", ""] if plan.unaffected else []
    lines += [f"Runs without a version, affected too: {', '.join(plan.runs)}.", ""] if plan.runs else []
    lines += ["## Retraining", "", *([_retraining(r) for r in plan.retrainings] or ["Nothing to train."])]
    lines += [f"- {model}: no job, because: {_text(why)}" for model, why in plan.not_retrained.items()]
    if any(r.checkpoint for r in plan.retrainings):
        lines += [
            "",
            "Should the derived manifest leave out more than is revoked now, because a site refuses by then, the job "
            "may refuse the checkpoint: it says so before it trains, and goes from scratch without `resume_from`.",
        ]
    lines += ["", "## Aliases to move", ""]
    lines += [f"- `{m.alias}`, now version {m.version}" for m in plan.aliases] or [
        "None points at an affected version."
    ]
    lines += ["", "Look at what the new version draws before an alias is moved to it.", ""]
    lines += ["## Commands, in order", "", "```sh", *plan.commands, "```", ""]
    lines += ["## Not known", "", *(f"- {_text(note)}" for note in plan.notes), ""] if plan.notes else []
    return "\n".join(lines)


def _manifest_row(found: ToDerive) -> str:
    if found.derived is not None:
        return f"- `{found.manifest}` keeps {found.rows:,} of the pictures; `{found.derived}` is derived without them."
    return f"- `{found.manifest}` keeps {found.rows:,} of the pictures; to be derived: `{found.command}`"


def _retraining(r: Retraining) -> str:
    if r.verb == "distill":
        taught = f"`{r.teacher}`" if r.teacher else f"what `{r.takes['teacher']}` makes"
        return f"- `{r.train_job}`, for {r.instead_of}: distilled again from {taught}, {r.images:,} images."
    if r.checkpoint is None:
        return f"- `{r.train_job}`, for {r.instead_of}: from scratch, {r.images:,} images, since {r.from_scratch}."
    return (
        f"- `{r.train_job}`, for {r.instead_of}: from the checkpoint `{r.checkpoint}`, which saves "
        f"{r.images_saved:,} of {r.images:,} images ({r.share_saved:.1%}). What comes of it is {r.claim}."
    )


def _text(given: str) -> str:
    """A stranger's words on one line, without Markdown's power."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>()#+!|~" else c for c in " ".join(given.split()))
