"""`cleanplate takedown plan`: what is to be done about an entry, with jobs that are ready to submit.

Planning examines every registered version for the entry and leaves a tag with the answer, which serving heeds
(`serving.takedowns`). The same plan made twice is one plan: the same files, tags and records.
"""

from __future__ import annotations

import getpass
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from curation import storage
from curation.errors import UserError
from pipelines.config import to_yaml
from pipelines.takedown_page import page
from pipelines.takedown_planner import Plan, Planner
from pipelines.takedown_survey import SHORT, Survey, leave_tags, survey
from pipelines.trace import count

if TYPE_CHECKING:
    from pipelines.takedown_jobs import AnyJob


def run(
    id_: str,
    *,
    out: str | None = None,
    ledger: str | None = None,
    tracking_uri: str | None = None,
    manifests: Sequence[str] = (),
) -> Plan:
    """Writes the plan, tags every version, and records both.

    Args:
        id_: the entry's id, or the beginning of it.
        out: folder for `plan.json`, `plan.md`, `plan.sh` and the jobs; runs/takedown-plans/ENTRY when not given.
        manifests: folders of manifests besides those that anything was trained on.

    Raises:
        UserError: no such entry, or one that was taken back; a ledger that cannot be read or written.
    """
    found = survey(id_, ledger, tracking_uri, manifests)
    if found.entry.withdrawn is not None:
        raise UserError(
            f"entry {found.entry.id[:SHORT]} was withdrawn on {found.entry.withdrawn.recorded_at:%Y-%m-%d}",
            field="entry",
            remedy="there is nothing to do about it",
        )
    folder = storage.absolute(out or storage.join("runs", "takedown-plans", found.entry.id[:SHORT]))
    plan, jobs = Planner(found, folder, tracking_uri).plan()
    _write(plan, jobs)
    leave_tags(found)
    _record(found, plan)
    return plan


def _write(plan: Plan, jobs: dict[str, AnyJob]) -> None:
    script = "\n".join(["#!/bin/sh", "set -eu", *plan.commands, ""])
    files = {"plan.json": plan.model_dump_json(indent=1) + "\n", "plan.md": page(plan), "plan.sh": script}
    for name, text in {**files, **{name: to_yaml(job) for name, job in jobs.items()}}.items():
        try:
            storage.write_bytes(storage.join(plan.folder, name), text.encode())
        except OSError as error:
            raise UserError(
                f"cannot write {plan.folder}: {error}", field="--out", remedy="name a folder that can be written"
            ) from None


def _record(found: Survey, plan: Plan) -> None:
    digest = hashlib.sha256(plan.model_dump_json().encode()).hexdigest()
    found.ledger.record_action(
        what="plan_written",
        subject=f"plan {digest[:16]}",
        by=getpass.getuser(),
        entry=found.entry.id,
        detail={
            "folder": plan.folder,
            "manifests": [d.id for d in plan.manifests],
            "versions": [v.model for v in plan.versions],
            "aliases": {move.alias: move.version for move in plan.aliases},
        },
        once=True,
    )


def summary(plan: Plan) -> list[str]:
    """What was found, and what to do next."""
    doubtful = sum(not v.certain for v in plan.versions)
    times = sum(v.times for v in plan.versions)
    derive = sum(d.command is not None for d in plan.manifests)
    lines = [
        f"entry {plan.entry[:SHORT]}: {count(derive, 'manifest')} to derive, "
        f"{count(len(plan.versions), 'version')} affected ({doubtful:,} of them not known), pictures seen "
        f"{count(times, 'time')}, {count(len(plan.aliases), 'alias', 'aliases')} to move",
    ]
    for r in plan.retrainings:
        saved = f"{r.images_saved:,} of {r.images:,} images saved by a checkpoint" if r.checkpoint else "from scratch"
        saved = f"from {r.teacher or r.takes['teacher']}" if r.verb == "distill" else saved
        lines.append(f"{r.train_job} {'distils' if r.verb == 'distill' else 'trains'} {r.instead_of} anew, {saved}")
    lines += [f"no job for {model}: {why}" for model, why in plan.not_retrained.items()]
    return [*lines, *plan.notes, f"read {storage.join(plan.folder, 'plan.md')}; the commands are in plan.sh"]
