"""What changed in the training content from an older manifest to a newer one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from curation.cards.facts import Facts, gather
from curation.manifest import Decision, Manifest


@dataclass(frozen=True)
class Difference:
    """The older manifest, what was counted in it, and how many pictures stay, come and go."""

    older: Manifest
    facts: Facts
    stay: int
    come: int
    go: int
    why: dict[str, int]  # of those that go: what the newer manifest says of them, by decision and reason


_NO_ROW = "no longer among the inputs"


def compare(newer: Manifest, older: Manifest) -> Difference:
    """Compares the kept rows of two manifests by their ids, 32 bytes a row.

    Raises:
        UserError: when the older manifest's rows do not reconcile.
    """
    facts = gather(older)
    before, after = kept_ids(older), kept_ids(newer)
    stay = np.intersect1d(before, after, assume_unique=True)
    gone = np.setdiff1d(before, after, assume_unique=True)
    return Difference(older, facts, len(stay), len(after) - len(stay), len(gone), _why(newer, gone))


def kept_ids(manifest: Manifest) -> np.ndarray:
    """(N,) the different ids of kept rows, sorted, as 32 raw bytes."""
    found = [_raw(batch["id"]) for batch in manifest.batches(["id"], decision=Decision.KEPT)]
    return np.unique(np.concatenate(found)) if found else np.empty(0, "V32")


def _raw(ids: pa.Array) -> np.ndarray:
    """Hex digests as 32 bytes each, in the dtype V32: S32 would lose zeros at the end."""
    return np.frombuffer(bytes.fromhex("".join(ids.to_pylist())), "V32")


def _why(newer: Manifest, gone: np.ndarray) -> dict[str, int]:
    left, found = set(gone.tolist()), Counter[str]()
    for batch in newer.batches(["id", "decision", "reason"]):
        if not left:
            break
        for i in np.flatnonzero(np.isin(_raw(batch["id"]), gone)).tolist():
            key = bytes.fromhex(batch["id"][i].as_py())
            if key in left:
                left.discard(key)
                found[f"{batch['decision'][i].as_py()}: {batch['reason'][i].as_py() or 'unstated'}"] += 1
    if left:
        found[_NO_ROW] = len(left)
    return dict(found)
