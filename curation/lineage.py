"""Where pictures stand in a manifest, by whatever somebody knows of them.

A `Query` is what was asked, as entries of a takedown ledger would say it: so `find` reaches exactly what a takedown of
the same subject would reach, by the same code (`curation.takedowns.revocation`). Nearest neighbours by CLIP are other
pictures; they are looked for apart (`neighbours`) and never taken for the picture.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from curation import storage
from curation.clip import Clip, ClipConfig
from curation.errors import UserError
from curation.images import ImageConfig, decode
from curation.manifest import Decision, Manifest, now
from curation.places import is_url
from curation.takedowns import Entry, LedgerState, Selector
from curation.takedowns.events import Kind, make_entry
from curation.takedowns.pictures import of_file
from curation.takedowns.revocation import COLUMNS, PICTURE_COLUMNS, Revocations, Revoked

How = Literal["exact", "pixel", "perceptual", "selector", "clip"]
_ORDER: tuple[How, ...] = ("exact", "selector", "pixel", "perceptual", "clip")
_KINDS: tuple[Kind, ...] = ("domain", "creator", "uri", "sha256")
_ENTRY = re.compile(r"[0-9a-f]{6,64}")
"""The beginning of an entry's id: fewer digits are as likely a file's name."""


class Found(BaseModel):
    """A row of a manifest that an answer is about."""

    model_config = ConfigDict(frozen=True)

    id: str
    uri: str
    decision: str
    reason: str | None
    how: How  # `selector`: by place or name; `clip`: another picture, near by embedding
    similarity: float | None  # share of equal hash bits, or the cosine of embeddings; None where nothing was measured
    of: str | None = None  # of a copy: id of the row, or sha256 of the picture, that it is a copy of


@dataclass(frozen=True)
class Query:
    """What somebody asks about.

    Attributes:
        kind: what `text` was taken for.
        text: as it was given; of an entry its whole id.
        entries: the same as a takedown would say it.
        picture: a file's bytes, where one was given.
    """

    kind: Literal["sha256", "uri", "domain", "creator", "picture", "entry"]
    text: str
    entries: tuple[Entry, ...]
    picture: bytes | None = None

    @classmethod
    def of(cls, subject: str, state: LedgerState | None = None) -> Query:
        """Takes a subject for what it looks like.

        `domain:`, `creator:`, `uri:` and `sha256:` say what is meant. Without them, in this order: the beginning of an
        entry's id where the ledger has one such, 64 hexadecimal digits, a URL, a file that is there, and else a uri as
        it stands in a manifest.

        Args:
            state: of the ledger whose entries may be meant.

        Raises:
            UserError: a subject that could select nothing, a file that is no picture, or an ambiguous entry.
        """
        subject = subject.strip()
        for kind in _KINDS:
            if subject.lower().startswith(f"{kind}:"):
                return _selecting(kind, subject[len(kind) + 1 :], subject)
        digits = subject.lower().removeprefix("entry:")
        if subject.lower().startswith("entry:") or _names_entry(digits, state):
            entry = (state or LedgerState((), (), ())).entry(digits)
            return cls("entry", entry.id, (entry,))
        if re.fullmatch(r"[0-9a-f]{64}", digits):
            return _selecting("sha256", digits, subject)
        if not is_url(subject) and storage.exists(subject) and not storage.is_dir(subject):
            return cls("picture", subject, (_unsaved(of_file(subject)),), storage.read_bytes(subject))
        return _selecting("uri", subject, subject)


def may_be_entry(subject: str) -> bool:
    """Whether a subject may mean an entry, so that it takes the ledger's state to tell."""
    return re.fullmatch(r"(entry:.*|[0-9a-f]{6,64})", subject.strip().lower()) is not None


def _names_entry(digits: str, state: LedgerState | None) -> bool:
    known = () if state is None else state.entries
    return _ENTRY.fullmatch(digits) is not None and any(entry.id.startswith(digits) for entry in known)


def _selecting(kind: Kind, value: str, text: str) -> Query:
    assert kind != "picture"
    return Query(kind, text, (_unsaved(Selector.of(kind, value)),))


def _unsaved(selector: Selector) -> Entry:
    """The entry that a takedown of this would be; it stands in no ledger."""
    at = now()
    return make_entry(
        requester="trace", ground="trace", selectors=[selector], requested_at=at, reference=None, recorded_at=at
    )


def find(manifest: Manifest, query: Query) -> list[Found]:
    """The rows of a manifest that a query is about, and the copies of them that it kept.

    Columns are streamed, neither pictures nor embeddings are read. The surest kind comes first, each kind in the order
    of the manifest. Of a picture also those copies are found that the manifest did not keep.
    """
    revocations = Revocations(query.entries)
    reached = revocations.of_manifest(manifest)
    known = [s for entry in query.entries for s in entry.selectors if s.kind == "picture"]
    named = {s.sha256 for entry in query.entries for s in entry.selectors if s.sha256 is not None}
    pixels = {s.value: s.pixel_hash for s in known}
    met: list[tuple[dict[str, Any], bool, Revoked | None]] = []
    for rows, here, itself in _met(manifest, revocations, reached):
        for i, row in zip(here, rows.take(pa.array(here, pa.int64())).to_pylist(), strict=True):
            if itself[i]:
                pixels.setdefault(row["id"], row.get("pixel_hash"))
            met.append((row, itself[i], reached.get(row["id"]) if row["decision"] == Decision.KEPT else None))
    found = [_told(row, itself, near, named, known, pixels) for row, itself, near in met]
    return sorted(found, key=lambda f: _ORDER.index(f.how))


def _met(
    manifest: Manifest, revocations: Revocations, reached: Collection[str]
) -> Iterator[tuple[pa.Table, list[int], list[bool]]]:
    """The rows of each batch, which of them are met, and whether each is met by a selector rather than as a copy."""
    names = [c for c in (*COLUMNS, *PICTURE_COLUMNS, "decision", "reason") if c in manifest.schema.names]
    for batch in manifest.batches(names):
        rows = pa.Table.from_batches([batch])
        itself = [entry is not None for entry in revocations.direct(rows, neighbours=False)]
        alike = [entry is not None for entry in revocations.direct(rows)] if len(revocations.pictures) else itself
        kept = [decision == Decision.KEPT for decision in rows["decision"].to_pylist()]
        copies = [k and id_ in reached for k, id_ in zip(kept, rows["id"].to_pylist(), strict=True)]
        yield rows, [i for i in range(rows.num_rows) if itself[i] or alike[i] or copies[i]], itself


def _told(
    row: dict[str, Any],
    itself: bool,
    near: Revoked | None,
    named: Collection[str],
    known: Sequence[Selector],
    pixels: dict[str, str | None],
) -> Found:
    """A row that was met, with how.

    Args:
        itself: whether it is selected by itself, and not as a copy.
        near: why a kept row is revoked.
        named: sha256 of files that the query names.
        known: the pictures that it shows.
        pixels: pixel hashes of these, and of the rows that are selected by themselves, by id.
    """
    how: How
    of: str | None = None
    similarity: float | None = 1.0
    if itself:
        how, similarity = ("exact", 1.0) if row["id"] in named else ("selector", None)
    elif near is not None:  # of one that is selected by itself there may be the same bytes elsewhere
        of, similarity = near.of or row["id"], near.similarity or 1.0
        same = row.get("pixel_hash") is not None and pixels.get(of) == row["pixel_hash"]
        how = "exact" if of == row["id"] else "pixel" if same else "perceptual"
    else:
        closest = max(known, key=lambda s: (s.pixel_hash == row["pixel_hash"], _likeness(s, row)))
        of = closest.value
        how = "pixel" if closest.pixel_hash == row["pixel_hash"] else "perceptual"
        similarity = 1.0 if how == "pixel" else _likeness(closest, row)
    stands = {name: row[name] for name in ("id", "uri", "decision")} | {"reason": row.get("reason")}
    return Found(**stands, how=how, similarity=similarity, of=of)


def _likeness(selector: Selector, row: dict[str, Any]) -> float:
    """The share of the 64 hash bits that agree, of the orientation that agrees best."""
    assert selector.phash is not None
    distances = [(selector.phash ^ phash).bit_count() for phash in (row["phash"], *(row.get("phash_turned") or ()))]
    return 1 - float(min(distances)) / 64


def clip_of(manifest: Manifest) -> Clip:
    """The CLIP model that made a manifest's embeddings.

    Raises:
        UserError: it has none, or the model is no longer there or another one by now.
    """
    info = manifest.info.clip
    try:
        config = ClipConfig.model_validate(manifest.info.job["clip"]) if info is not None else None
    except (KeyError, ValidationError):
        config = None
    if info is None or config is None:
        raise UserError(
            f"the manifest {manifest.uri} has no embeddings, or its job does not say by which CLIP",
            field="--neighbours",
            remedy="leave neighbours out, or curate with `clip` set",
        )
    config.check()
    clip = config.model_copy(update={"batch_size": 1, "device": "cpu"}).build()
    if clip.name != info.name:
        raise UserError(
            f"the embeddings of {manifest.uri} are by {info.name}, but {config.model} is now {clip.name}",
            field="--neighbours",
            remedy="restore that model, or leave neighbours out",
        )
    return clip


def neighbours(manifest: Manifest, clip: Clip, picture: bytes, k: int, apart_from: Collection[str] = ()) -> list[Found]:
    """The k rows nearest to a picture by the cosine of CLIP embeddings, nearest first. They are other pictures.

    Args:
        clip: `clip_of` the manifest.
        picture: a picture's file.
        k: how many rows, kept or not.
        apart_from: ids of rows that are the picture itself.
    """
    pixels = decode(picture, ImageConfig(), max(clip.image_size, 32)).pixels
    target = clip.embed_images(clip.prepare(pixels)[None])[0].astype(np.float32)
    best: list[tuple[float, dict[str, Any]]] = []
    leave = set(apart_from)
    for batch in manifest.batches(["id", "uri", "decision", "reason", "embedding"]):
        if not batch.num_rows:
            continue
        values = batch["embedding"].flatten().to_numpy(zero_copy_only=False).reshape(batch.num_rows, -1)
        cosines = values.astype(np.float32) @ target
        told = batch.select(["id", "uri", "decision", "reason"])
        # as many more as may be left out stand in for those that are
        for i in np.argsort(-cosines, kind="stable")[: k + len(leave)].tolist():
            row = told.slice(i, 1).to_pylist()[0]
            if row["id"] not in leave and values[i].any():
                best.append((float(cosines[i]), row))
        best = sorted(best, key=lambda scored: -scored[0])[:k]
    return [Found(**row, how="clip", similarity=similarity) for similarity, row in best]
