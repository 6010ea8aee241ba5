"""Deriving a manifest: the rows of a curated one, decided anew by what is said about them today.

Nothing is measured and no picture is fetched. What is refused by now leaves, with its near-copies, and nothing else
does; so a derived manifest keeps a part of what its base kept. It is always derived from the curated manifest itself:
a refusal that was taken back, or a site that could not be asked last time, is then no more than that.
"""

from __future__ import annotations

import os
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ValidationError

from curation import storage
from curation.decide import Facts, embeddings_of, settle
from curation.duplicates import KINDS
from curation.engine import code_version
from curation.errors import UserError
from curation.job import CurateJob
from curation.manifest import (
    Decision,
    LedgerInfo,
    Manifest,
    ManifestInfo,
    Reason,
    Verdict,
    evidence_from,
    manifest_id,
    now,
    publish,
    schema,
    write_part,
)
from curation.policy import Policy, Ruling, rule_of
from curation.reask import SIGNAL, is_from_web
from curation.rights.lists import LISTED, REQUESTED, OptOutList, OptOuts
from curation.rights.verdict import Observation, of_row, verdict
from curation.takedowns import Ledger, LedgerState, of_place, refuse_vanished
from curation.takedowns.ledger import VARIABLE

_ASKED_ANEW = frozenset({LISTED, REQUESTED, "licence", "optout_near_copy"})


class Rechecked(BaseModel):
    """What a recheck came to."""

    manifest: str
    id: str
    base_id: str
    kept_before: int
    kept: int
    changes: dict[str, int]  # rows that left, by reason
    changed: list[dict[str, Any]]  # some of them: id, uri, decision, reason, rule
    asked: int  # places that the web was asked about
    entries: dict[str, int]  # ids of takedowns, and how many rows each removed by itself


@dataclass(frozen=True)
class Sources:
    """What a manifest is decided anew by."""

    base: Manifest
    given: Manifest  # the one that was named: the base itself, or one derived from it
    policy: Policy
    ledger: Ledger
    state: LedgerState


def sources(manifest: Manifest, *, optout: Sequence[str] | None = None, ledger: str | None = None) -> Sources:
    """Opens what a recheck reads, before anything starts.

    Args:
        optout: paths of opt-out lists; None: those that the manifest was decided by.
        ledger: takedown ledger, or a manifest that names one; None: $CLEANPLATE_LEDGER's, else the manifest's own.

    Raises:
        UserError: a manifest without a job that this version knows, lists or a ledger that cannot be read, a ledger
            that lacks requests which the manifest heeded.
    """
    base = manifest
    if manifest.info.base_uri is not None:
        base = Manifest.open(manifest.info.base_uri)
        if base.id != manifest.info.base_id:
            raise UserError(
                f"{base.uri} is not the manifest that {manifest.uri} was derived from",
                field="manifest",
                remedy="restore it, or recheck the curated manifest itself",
            )
    try:
        # That of the base, but for lists that an earlier recheck was given: who stands on them has not taken it back.
        job = CurateJob.model_validate(manifest.info.job)
    except ValidationError as error:
        raise UserError(
            f"the job of {manifest.uri} is not one of this version: {error.errors()[0]['msg']}",
            field="manifest",
            remedy="curate again with this version",
        ) from None
    if optout is not None:
        job = job.model_copy(update={"optout": tuple(OptOutList(path=path) for path in optout)})
    opened = Ledger.open(of_place(ledger or os.environ.get(VARIABLE) or manifest.uri))
    state = opened.read()
    refuse_vanished(opened.uri, state, (manifest, base))
    policy = Policy(job, OptOuts.read(job.optout, state.in_force), job.safety.limits(job.clip))
    return Sources(base, manifest, policy, opened, state)


def derive(found: Sources, seen: Mapping[str, Sequence[Observation]] | None, output: str | None = None) -> Rechecked:
    """Publishes the manifest that is left of `found.base`.

    Args:
        seen: what the web says today, by uri (`reask.ask_again`); None keeps what was seen before.
        output: where to publish it; beside the base when not given.

    Raises:
        UserError: when the base cannot be read any more, or the output not written.
    """
    base, policy, at = found.base, found.policy, now()
    dim = None if base.info.clip is None else base.info.clip.dim
    rulings, facts = _rule_again(found, seen)
    settled = settle(policy, facts)
    output = output or storage.absolute(base.uri).rpartition("/")[0]
    staging = storage.join(output, ".work", f"staging-{uuid.uuid4().hex[:16]}")
    counts, reasons, changes, rules = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    changed: list[dict[str, Any]] = []
    parts, digests, times, start = [], [], [], 0
    try:
        for part in base.info.files:
            rows = _read(base, part.name, dim)
            end = start + rows.num_rows
            bound = settled.rows(start, end).to_pylist()
            rows = _decided(policy, rows, rulings[start:end], bound)
            written, digest = write_part(storage.join(staging, part.name), rows)
            parts.append(written)
            digests.append(digest)
            times.append(evidence_from(rows))
            counts.update(rows["decision"].to_pylist())
            reasons.update(rows["reason"].to_pylist())
            left = rows.filter(pc.equal(rows["was_kept"], True)).select(_TOLD).to_pylist()
            changes.update(row["reason"] for row in left)
            rules.update(row["rule"] for row in left)
            changed += left[: max(0, 100 - len(changed))]
            start = end
        info = ManifestInfo(
            id=manifest_id({"base": base.id, "at": at.isoformat(), "ledger": found.state.version}, digests),
            parent_id=found.given.id,
            parent_uri=storage.absolute(found.given.uri),
            base_id=base.id,
            base_uri=storage.absolute(base.uri),
            name=base.info.name,
            created_at=at,
            code_version=code_version(),
            job=policy.job.public(),
            clip=base.info.clip,
            inputs=base.info.inputs,
            rows=start,
            counts={decision.value: counts[decision.value] for decision in Decision},
            reasons=dict(sorted(reasons.items())),
            rights=policy.optouts.sources,
            ledger=LedgerInfo(uri=found.ledger.uri, version=found.state.version, entries=len(found.state.in_force)),
            evidence_from=min((t for t in times if t is not None), default=None),
            changes=dict(sorted(changes.items())),
            files=parts,
            work=base.info.work,
        )
        child = publish(staging, output, info)
    except BaseException as error:
        with suppress(OSError):
            storage.remove_tree(staging)
        if isinstance(error, OSError):
            raise UserError(
                f"{base.uri} cannot be read, or {output} written: {error}",
                field="--out",
                remedy="make room or give access, or name another folder",
            ) from error
        raise
    return Rechecked(
        manifest=child.uri,
        id=child.id,
        base_id=base.id,
        kept_before=found.given.info.counts[Decision.KEPT.value],
        kept=counts[Decision.KEPT.value],
        changes=dict(changes),
        changed=changed,
        asked=0 if seen is None else len(seen),
        entries={e.id: n for e in found.state.in_force if (n := rules[f"takedown {e.id[:12]}"])},
    )


_TOLD = ["id", "uri", "decision", "reason", "rule"]


def record(found: Sources, result: Rechecked, by: str) -> None:
    """Adds to the ledger's audit record which entries removed rows of the new manifest."""
    for entry, n in result.entries.items():
        found.ledger.record_action(
            what="manifest_derived",
            subject=result.id,
            by=by,
            entry=entry,
            detail={"manifest": result.manifest, "base": result.base_id, "rows": n},
            once=True,
        )


def _read(base: Manifest, part: str, dim: int | None) -> pa.Table:
    """A part of the base with all columns of today's schema; those that an older manifest had not are null."""
    import pyarrow.parquet as pq

    system, path = storage.filesystem(storage.join(base.uri, part))
    rows = pq.read_table(path, filesystem=system)
    wanted = schema(dim, rows.column_names)
    columns = [
        rows[field.name].cast(field.type) if field.name in rows.column_names else pa.nulls(rows.num_rows, field.type)
        for field in wanted
    ]
    return pa.Table.from_arrays(columns, schema=wanted)


_FACTS = (
    *("id", "uri", "final_uri", "redirects", "source_url", "host", "creator", "licence", "licence_url", "embedded"),
    *("width", "height", "pixel_hash", "phash", "phash_turned", "colour_layout", "rights", "decision", "reason"),
    *("frame_files", "frame_phashes", "frame_layouts"),
)


def _rule_again(found: Sources, seen: Mapping[str, Sequence[Observation]] | None) -> tuple[list[Ruling | None], Facts]:
    """A ruling for each row of the base that is decided anew, None for those that stay as they are; and the facts."""
    policy, there = found.policy, found.base.schema.names
    wanted = [name for name in _FACTS if name in there]
    if policy.job.duplicates.semantic is not None and "embedding" in there:
        wanted.append("embedding")
    rulings: list[Ruling | None] = []
    parts = []
    for batch in found.base.batches(wanted):
        rows = pa.Table.from_batches([batch])
        for name, kind in (("phash_turned", pa.list_(pa.uint64())), ("embedded", schema(None).field("embedded").type)):
            if name not in there:
                rows = rows.append_column(name, pa.nulls(rows.num_rows, kind))
        ruled = [_again(policy, row, seen) for row in rows.drop_columns(_unread(rows)).to_pylist()]
        rulings += ruled
        as_ruled = [
            ruling or Ruling(Decision(decision), "", reason)
            for ruling, decision, reason in zip(
                ruled, rows["decision"].to_pylist(), rows["reason"].to_pylist(), strict=True
            )
        ]
        parts.append(Facts.of(policy, rows, as_ruled, embeddings_of(policy, rows)))
    return rulings, Facts.join(parts)


def _unread(rows: pa.Table) -> list[str]:
    return [
        name for name in ("embedding", "colour_layout", "phash_turned", "frame_layouts") if name in rows.column_names
    ]


def _again(policy: Policy, row: Mapping[str, Any], seen: Mapping[str, Sequence[Observation]] | None) -> Ruling | None:
    listed = policy.optouts.observe(row)
    kept, fresh = row["decision"] == Decision.KEPT, (seen or {}).get(row["uri"])
    if not kept and (row["reason"] == Reason.OPTED_OUT or not (listed or fresh)):
        return None
    told = [of_row(o) for o in row["rights"] or () if o["signal"] not in _ASKED_ANEW]
    if fresh is not None:
        told = [*fresh, *(o for o in told if not is_from_web(o.row()))]
    licence = policy.licences.observe(row)
    rights = (*listed, *told, licence)
    heard = policy.deciding(told)
    if any(o.signal == SIGNAL and o.verdict == Verdict.ERROR for o in heard):
        # A site that cannot be asked whether it may be asked counts as refusing: now, not for good.
        heard = [o for o in heard if o.signal != "robots"]
    denied = next((o for o in (*listed, *heard) if o.verdict == Verdict.DENY), None)
    if denied is not None:
        return Ruling(Decision.DROPPED, "rights", Reason.OPTED_OUT, rule_of(denied), rights=rights)
    if not kept:
        return None  # it stays out for the reason it had; if it is refused by now, so are its copies
    ruling = policy.unreadable(heard) or policy.unstated([*heard, licence])
    return (ruling or Ruling(Decision.KEPT, "decide", Reason.PASSED)).with_rights(rights)


def _decided(
    policy: Policy, rows: pa.Table, rulings: Sequence[Ruling | None], bound: Sequence[Mapping[str, Any]]
) -> pa.Table:
    """Rows of the base as they are decided now. Of rows that it did not keep only the evidence changes."""
    columns = {name: rows[name].to_pylist() for name in _CHANGED}
    for i, (ruling, bind) in enumerate(zip(rulings, bound, strict=True)):
        if ruling is None:
            continue
        rights, was_kept = ruling.rights, columns["decision"][i] == Decision.KEPT
        if was_kept and bind["denied"] and ruling.reason != Reason.OPTED_OUT:
            value = f"{KINDS[bind['kind']]} copy of {bind['duplicate_of']}"
            rights = (*rights, Observation("optout_near_copy", value, "manifest", Verdict.DENY))
            ruling = Ruling(Decision.DROPPED, "rights", Reason.OPTED_OUT_NEAR_COPY, "takedown copies", rights=rights)
            columns["duplicate_of"][i], columns["duplicate_kind"][i] = bind["duplicate_of"], KINDS[bind["kind"]]
            columns["similarity"][i] = bind["similarity"]
        columns["rights"][i] = [observation.row() for observation in rights]
        columns["rights_verdict"][i] = verdict(policy.deciding(rights)).value
        if was_kept and ruling.decision != Decision.KEPT:
            columns["was_kept"][i] = True
            columns["image"][i] = None
            columns["decision"][i], columns["stage"][i] = ruling.decision.value, ruling.stage
            columns["reason"][i], columns["rule"][i] = str(ruling.reason), ruling.rule
            columns["score"][i] = columns["threshold"][i] = None
    for name in _CHANGED:
        place = rows.schema.get_field_index(name)
        rows = rows.set_column(place, rows.schema.field(place), pa.array(columns[name], rows.schema.field(place).type))
    return rows


_CHANGED = (
    *("rights", "rights_verdict", "decision", "was_kept", "stage", "reason", "rule", "score", "threshold"),
    *("duplicate_of", "duplicate_kind", "similarity", "image"),
)
