"""Deciding: the one place where the job's policy meets what was measured.

`policy.Policy` rules on each row by itself; `settle` adds what only the whole set can tell, opt-outs spreading to
near-copies and the choice among duplicates; `manifest_rows` writes both into rows. None of them runs a model or reads a
picture: another policy decides the same measurements anew in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import storage
from curation.captions import Choice
from curation.duplicates import (
    KINDS,
    REASONS,
    RULES,
    Bindings,
    Copies,
    CopyInputs,
    DuplicatesConfig,
    Edges,
    Motion,
    find,
    other_frames,
    preference,
)
from curation.manifest import IMAGE, OPTIONAL, Decision, Manifest, Reason, Verdict, schema
from curation.policy import Policy, Ruling
from curation.rights.verdict import Observation, verdict
from curation.units import embedding_matrix


def rule_all(
    policy: Policy, measured: pa.Table, heads: pa.Table | None, captions: pa.Table | None
) -> list[tuple[Ruling, Choice]]:
    """Every row's own ruling and captions.

    Args:
        policy: what to decide by.
        measured: a measured unit, at least the policy's `columns`.
        heads: its scores by the heads on embeddings; None where the job has none.
        captions: its captions; None where the job has none.
    """
    rows: list[dict[str, Any]] = measured.select([c for c in policy.columns if c not in _UNREAD]).to_pylist()
    for column in ("scores", "safety"):
        if heads is not None:
            for row, more in zip(rows, heads[column].to_pylist(), strict=True):
                row[column] = [*(row[column] or ()), *(more or ())]
    told = [None] * len(rows) if captions is None else captions["captions"].to_pylist()
    return [policy.rule(row | {"captions": found}) for row, found in zip(rows, told, strict=True)]


_UNREAD = ("colour_layout", "frame_layouts")


class Facts(NamedTuple):
    """What of N rows the global step needs, as arrays."""

    ids: np.ndarray  # (N,) S64
    pictured: np.ndarray  # (N,) bool; where False, the arrays below hold zeros
    pixel_hashes: np.ndarray  # (N,) S64
    phashes: np.ndarray  # (N,) uint64
    turned: np.ndarray  # (N, 7) uint64, or (N, 0)
    colours: np.ndarray  # (N, 48) uint8
    embeddings: np.ndarray  # (N, dim) float16, or (N, 0) where they are not asked for
    area: np.ndarray  # (N,) int64
    licence: np.ndarray  # (N,) int64: place of the licence in the job's list
    kept: np.ndarray  # (N,) bool: by the row's own ruling
    opted_out: np.ndarray  # (N,) bool
    frames: np.ndarray  # (N, F) uint64, as `Motion` has them; (N, 0) where the job takes stills
    frame_colours: np.ndarray  # (N, F, 48) uint8

    @classmethod
    def of(cls, policy: Policy, rows: pa.Table, rulings: Sequence[Ruling], embeddings: np.ndarray) -> Facts:
        """Of rows with the policy's `columns` (or a manifest's) and their own rulings."""
        n = rows.num_rows
        pictured = rows["pixel_hash"].combine_chunks().is_valid().to_numpy(zero_copy_only=False)
        turned = np.zeros((n, 7 if policy.job.duplicates.turned else 0), np.uint64)
        colours = np.zeros((n, 48), np.uint8)
        turns, layouts = rows["phash_turned"].to_pylist(), rows["colour_layout"].to_pylist()
        for i in np.flatnonzero(pictured):
            colours[i] = np.frombuffer(layouts[i], np.uint8)
            if turned.shape[1] and turns[i]:
                turned[i] = turns[i]
        area = np.array(
            [(w or 0) * (h or 0) for w, h in zip(*(rows[c].to_pylist() for c in _SIZE), strict=True)], np.int64
        )
        phashes = pc.fill_null(rows["phash"], 0).to_numpy().astype(np.uint64)
        told = rows.select([c for c in _FRAMES if c in rows.column_names]).to_pylist()
        motion = Motion.of(told, phashes, colours, policy.job.frames or 0)
        stated = zip(rows["licence"].to_pylist(), rows["licence_url"].to_pylist(), strict=True)
        return cls(
            np.array(rows["id"].to_pylist(), "S64"),
            pictured,
            np.array(pc.fill_null(rows["pixel_hash"], "").to_pylist(), "S64"),
            phashes,
            turned,
            colours,
            embeddings,
            area,
            np.array([policy.licences.rank(name or url) for name, url in stated], np.int64),
            np.array([r.decision == Decision.KEPT for r in rulings], bool),
            np.array([r.reason == Reason.OPTED_OUT for r in rulings], bool),
            motion.phashes,
            motion.layouts,
        )

    @property
    def motion(self) -> Motion | None:
        """The rows' frames; None where the job takes stills."""
        return Motion(self.frames, self.frame_colours) if self.frames.shape[1] else None

    def copy_inputs(self) -> CopyInputs:
        turned = self.turned if self.turned.shape[1] else None
        embeddings = self.embeddings if self.embeddings.shape[1] else None
        return CopyInputs(self.ids, self.pixel_hashes, self.phashes, self.colours, turned, embeddings)

    @classmethod
    def join(cls, parts: Sequence[Facts]) -> Facts:
        return cls(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    @classmethod
    def zeros(cls, n: int, like: Facts) -> Facts:
        """Room for n rows that are to be `put`: what is joined instead is held twice."""
        return cls(*(np.zeros((n, *array.shape[1:]), array.dtype) for array in like))

    def put(self, start: int, part: Facts) -> None:
        """Writes the facts of rows from `start` on into their place."""
        for here, array in zip(self, part, strict=True):
            here[start : start + len(array)] = array


_SIZE = ("width", "height")
_FRAMES = ("frame_phashes", "frame_layouts")


@dataclass(frozen=True)
class Settled:
    """What only the whole set can tell about N rows."""

    ids: np.ndarray  # (N + V,) S64: of the rows, then of an older manifest's that bind them
    denied: Bindings  # to what is opted out
    duplicates: Bindings  # to what stays
    nearest: np.ndarray  # (N + V,) int64: most similar row by embedding, or -1
    nearest_similarity: np.ndarray  # (N + V,) float32

    @cached_property
    def clusters(self) -> np.ndarray:
        return self.duplicates.clusters()

    def rows(self, start: int, end: int) -> pa.Table:
        """What it says of some rows, to be shipped to whoever writes them: what `manifest_rows` takes."""
        here = slice(start, end)
        bound = np.where(self.denied.of[here] >= 0, self.denied.of[here], self.duplicates.of[here])
        kind = np.where(self.denied.of[here] >= 0, self.denied.kind[here], self.duplicates.kind[here])
        likeness = np.where(self.denied.of[here] >= 0, self.denied.similarity[here], self.duplicates.similarity[here])
        return pa.table(
            {
                "denied": pa.array(self.denied.of[here] >= 0),
                "duplicate_of": self._names(bound),
                "kind": pa.array(kind, pa.int8()),
                "similarity": pa.array(likeness, pa.float32(), mask=bound < 0),
                "duplicate_cluster": self._names(self.clusters[here]),
                "nearest": self._names(self.nearest[here]),
                "nearest_similarity": pa.array(
                    self.nearest_similarity[here], pa.float32(), mask=self.nearest[here] < 0
                ),
            }
        )

    def _names(self, of: np.ndarray) -> pa.Array:
        return pa.array([self.ids[i].decode() if i >= 0 else None for i in of], pa.string())


def settle(policy: Policy, facts: Facts, parent: Facts | None = None, work: str | None = None) -> Settled:
    """Decides among copies.

    Args:
        policy: what to decide by.
        facts: of every row of the job, in manifest order.
        parent: of the rows of older manifests that they kept or that are opted out. What they kept stays before all
            else, whether it is among this job's inputs or not.
        work: folder that what was found about copies is kept in.

    Returns:
        What binds each of the job's rows to another.
    """
    others = [found for found in (parent, _requested(policy, facts)) if found is not None]
    everything, first = _with_parent(facts, Facts.join(others) if others else None)
    pictured, ids = np.flatnonzero(everything.pictured), everything.ids
    rows = everything if len(pictured) == len(ids) else Facts(*(array[pictured] for array in everything))
    del facts, everything  # 200 bytes a row, which the search has use for
    config = policy.job.copies
    # Whether the job wants duplicates dropped is its own affair; an opt-out reaches its copies all the same.
    edges = _edges(rows.copy_inputs(), config.binding(), work)
    measures = (rows.ids, rows.pixel_hashes, rows.phashes, rows.colours)
    denied = Copies(*measures, config.binding(), edges=edges).spread(rows.opted_out)
    if rows.motion is not None and rows.opted_out.any():
        denied = _by_any_frame(rows, rows.motion, denied, config.binding())
    ranks = {"licence": rows.licence, "resolution": -rows.area}
    order = preference(config.prefer, ranks, first=first[pictured])
    duplicates = Copies(*measures, config, edges=edges, motion=rows.motion).elect(rows.kept & (denied.of < 0), order)
    nearest, similarity = edges.nearest()
    total = len(ids)
    return Settled(
        ids,
        _among_all(denied, pictured, total),
        _among_all(duplicates, pictured, total),
        *_neighbours(nearest, similarity, pictured, total),
    )


def _by_any_frame(rows: Facts, motion: Motion, denied: Bindings, config: DuplicatesConfig) -> Bindings:
    """What is bound to something opted out, also where it is another frame than the first that looks like it."""
    frames = other_frames(rows.phashes, motion)
    n = len(rows.ids)
    owners = np.concatenate([np.arange(n), frames.owners])
    marked = rows.opted_out[owners]
    found = Copies(
        rows.ids[owners],
        np.concatenate([rows.pixel_hashes, frames.pixel_hashes(rows.ids)]),
        np.concatenate([rows.phashes, frames.phashes]),
        np.concatenate([rows.colours, frames.colours]),
        config.model_copy(update={"semantic": None, "perceptual": _unturned(config)}),
    ).spread(marked)
    of, kind, similarity = denied.of.copy(), denied.kind.copy(), denied.similarity.copy()
    for i in np.flatnonzero(found.of >= 0):
        owner = owners[i]
        if of[owner] < 0 or (kind[owner] == found.kind[i] and similarity[owner] < found.similarity[i]):
            of[owner], kind[owner] = owners[found.of[i]], found.kind[i]
            similarity[owner] = found.similarity[i]
    return Bindings(of, kind, similarity)


def _unturned(config: DuplicatesConfig) -> Any:
    assert config.perceptual is not None, "an opt-out's reach has it"
    return config.perceptual.model_copy(update={"turned": False})


def _requested(policy: Policy, facts: Facts) -> Facts | None:
    """Pictures that somebody asked to take down, as rows that are opted out: their copies are to be found."""
    asked = policy.optouts.pictures
    if not asked:
        return None
    n = len(asked)
    phashes = np.array([s.phash for s in asked], np.uint64)
    colours = np.stack([np.frombuffer(s.colour_layout or b"", np.uint8) for s in asked])
    return Facts(
        ids=np.array([s.value for s in asked], "S64"),
        pictured=np.ones(n, bool),
        pixel_hashes=np.array([s.pixel_hash for s in asked], "S64"),
        phashes=phashes,
        # Of a picture handed in, the other orientations are not known; its own hash stands for them and adds nothing.
        turned=np.repeat(phashes[:, None], facts.turned.shape[1], axis=1),
        colours=colours,
        embeddings=np.zeros((n, facts.embeddings.shape[1]), np.float16),
        area=np.zeros(n, np.int64),
        licence=np.zeros(n, np.int64),
        kept=np.zeros(n, bool),
        opted_out=np.ones(n, bool),
        frames=np.repeat(phashes[:, None], facts.frames.shape[1], axis=1),
        frame_colours=np.repeat(colours[:, None], facts.frames.shape[1], axis=1),
    )


def _edges(rows: CopyInputs, config: DuplicatesConfig, work: str | None) -> Edges:
    """What may be a copy of what: found once, and kept below `work` for other thresholds."""
    if work is None:
        return find(rows, config)
    folder = storage.join(work, f"copies-{rows.key()[:16]}")
    stored = Edges.read(folder)
    if stored is not None and stored.covers(config):
        return stored
    found = find(rows, config, work=storage.join(folder, "search"))
    found.write(folder)
    storage.remove_tree(storage.join(folder, "search"))
    return found


def _with_parent(facts: Facts, parent: Facts | None) -> tuple[Facts, np.ndarray]:
    """The rows, then those of the parent, and what goes before what among copies.

    First the rows that the parent kept, as this job sees them (0), then the parent's own (1): they bind copies also
    where this job has not got the picture, or would not keep it. Then the rest (2).
    """
    if parent is None:
        return facts, np.zeros(len(facts.ids), np.int64)
    known = np.isin(facts.ids, parent.ids[parent.kept])
    return Facts.join([facts, parent]), np.concatenate([np.where(known, 0, 2), np.ones(len(parent.ids), np.int64)])


def _among_all(bindings: Bindings, pictured: np.ndarray, total: int) -> Bindings:
    """Bindings among rows with pictures as bindings among all of `total` rows."""
    of, kind, similarity = np.full(total, -1, np.int64), np.zeros(total, np.int8), np.zeros(total, np.float32)
    of[pictured] = np.where(bindings.of >= 0, pictured[bindings.of], -1)
    kind[pictured], similarity[pictured] = bindings.kind, bindings.similarity
    return Bindings(of, kind, similarity)


def _neighbours(
    nearest: np.ndarray, similarity: np.ndarray, pictured: np.ndarray, total: int
) -> tuple[np.ndarray, np.ndarray]:
    """The same for each row's nearest by embedding."""
    of, likeness = np.full(total, -1, np.int64), np.zeros(total, np.float32)
    of[pictured] = np.where(nearest >= 0, pictured[nearest], -1)
    likeness[pictured] = similarity
    return of, likeness


def parent_facts(policy: Policy, parent: Manifest) -> Facts:
    """The rows of an older manifest that bind new ones: what it kept, what it refused, and what is refused by now."""
    wanted = [*_OF_PARENT, *(["embedding"] if policy.job.duplicates.semantic else [])]
    present = parent.schema.names
    parts = []
    for batch in parent.batches(
        [c for c in (*wanted, "phash_turned", *_OF_MOVING, "decision", "reason") if c in present]
    ):
        rows = pa.Table.from_batches([batch])
        binding = pc.or_(
            pc.equal(rows["decision"], Decision.KEPT.value), pc.equal(rows["reason"], Reason.OPTED_OUT.value)
        )
        rows = rows.filter(binding)
        if "phash_turned" not in present:
            rows = rows.append_column("phash_turned", pa.nulls(rows.num_rows, pa.list_(pa.uint64())))
        rulings = [_of_parent(policy, row) for row in rows.to_pylist()]
        parts.append(Facts.of(policy, rows, rulings, embeddings_of(policy, rows)))
    return Facts.join(parts)


_OF_PARENT = (
    *("id", "uri", "final_uri", "redirects", "source_url", "host", "creator", "licence", "licence_url"),
    *("width", "height", "pixel_hash", "phash", "colour_layout", "embedded"),
)
_OF_MOVING = ("frame_files", *_FRAMES)


def _of_parent(policy: Policy, row: Mapping[str, Any]) -> Ruling:
    if row["reason"] == Reason.OPTED_OUT or policy.optouts.observe(row):
        return Ruling(Decision.DROPPED, "rights", Reason.OPTED_OUT)
    return Ruling(Decision.KEPT, "decide", Reason.PASSED)


def embeddings_of(policy: Policy, rows: pa.Table) -> np.ndarray:
    """(N, dim) float16, or (N, 0) where the job does not compare embeddings."""
    if policy.job.duplicates.semantic is None:
        return np.zeros((rows.num_rows, 0), np.float16)
    return embedding_matrix(rows["embedding"])


def manifest_rows(
    policy: Policy, measured: pa.Table, heads: pa.Table | None, captions: pa.Table | None, settled: pa.Table
) -> pa.Table:
    """One unit as rows of the manifest; only kept rows keep their picture.

    Args:
        policy, measured, heads, captions: as of `rule_all`, but with all columns.
        settled: the unit's rows of `Settled.rows`.
    """
    ruled = rule_all(policy, measured, heads, captions)
    bound = [
        _bind(ruling, bind) if bind["duplicate_of"] else ruling
        for (ruling, _), bind in zip(ruled, settled.to_pylist(), strict=True)
    ]
    dim = None
    if "embedding" in measured.column_names:
        dim = measured.schema.field("embedding").type.list_size
    found = dict(zip(measured.column_names, measured.columns, strict=True))
    for name in ("safety", "scores"):
        if heads is not None:
            pairs = zip(measured[name].to_pylist(), heads[name].to_pylist(), strict=True)
            found[name] = [[*(a or ()), *(b or ())] if a or b else None for a, b in pairs]
    if captions is not None:
        found["detail"] = pc.coalesce(measured["detail"], captions["failed"], captions["refused"])
    choices = [choice for _, choice in ruled]
    found |= {
        "groups": [None] * len(ruled) if heads is None else heads["groups"],
        "caption": [c.caption.text if c.caption else None for c in choices],
        "caption_source": [c.caption.source if c.caption else None for c in choices],
        "captions": [[vars(caption) for caption in c.kept] or None for c in choices],
        "rights": [[observation.row() for observation in r.rights] for r in bound],
        "rights_verdict": [verdict(policy.deciding(r.rights)).value for r in bound],
        "duplicate_kind": [
            KINDS[k] if d else None for d, k in zip(*(settled[c].to_pylist() for c in _BOUND), strict=True)
        ],
        "was_kept": [None] * len(bound),
        "image": _pictures_of_kept(measured["image"], np.array([r.decision == Decision.KEPT for r in bound], bool)),
    }
    for name in ("decision", "stage", "reason", "rule", "score", "threshold"):
        found[name] = [getattr(r, name) for r in bound]
    for name in ("duplicate_of", "similarity", "duplicate_cluster", "nearest", "nearest_similarity"):
        found[name] = settled[name]
    fields = schema(dim, [name for name in OPTIONAL.names if name in found])
    return pa.Table.from_arrays([_column(found[field.name], field.type) for field in fields], schema=fields)


_BOUND = ("duplicate_of", "kind")


def _bind(ruling: Ruling, bind: Mapping[str, Any]) -> Ruling:
    """The ruling of a row that is bound to another: a copy of something opted out, or a duplicate."""
    kind, likeness = bind["kind"], bind["similarity"]
    if not bind["denied"]:
        reason, rights, stage = REASONS[kind], ruling.rights, "duplicates"
    else:
        value = f"{KINDS[kind]} copy of {bind['duplicate_of']}"
        rights = (*ruling.rights, Observation("optout_near_copy", value, "manifest", Verdict.DENY))
        reason, stage = Reason.OPTED_OUT_NEAR_COPY, "rights"
    return Ruling(Decision.DROPPED, stage, reason, RULES[kind], likeness, rights=rights)


def _pictures_of_kept(column: pa.ChunkedArray, kept: np.ndarray) -> pa.Array:
    pictures = column.combine_chunks()
    pictures = pictures.chunk(0) if isinstance(pictures, pa.ChunkedArray) else pictures
    mask = pa.array(kept)
    fields = [pc.if_else(mask, pictures.field(f.name), pa.scalar(None, f.type)) for f in IMAGE]
    return pa.StructArray.from_arrays(fields, fields=list(IMAGE), mask=pc.invert(mask))


def _column(values: Any, kind: pa.DataType) -> Any:
    return values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, kind)
