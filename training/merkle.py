"""What a training set was, as one hash, and proofs of what was in it that need nothing but this hash.

The ids of a set (sha256 of each input's original bytes) in ascending order are the leaves of a Merkle tree (RFC 9162,
section 2.1, which is that of RFC 6962): `sha256(0x00 | id)` is a leaf, `sha256(0x01 | left | right)` a node. The digest
that is published is `sha256(0x02 | number of leaves, 8 bytes, big-endian | root)`, so that it binds the size too, which
a root alone does not. A proof of inclusion is a leaf with its audit path; a proof of absence is the two neighbours
between which the id would stand. It says as much as the promise that whoever published the digest had sorted the ids,
which everybody can check who is given all of them. `docs/verify_proof.py` checks the same with nothing but Python.
"""

from __future__ import annotations

import bisect
import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from curation.errors import UserError

_ID = re.compile("[0-9a-f]{64}")
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Leaf(BaseModel):
    """One id of the set, and the hashes that lead from it to the root, from below (RFC 9162, section 2.1.3)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    index: int = Field(ge=0, lt=2**63)
    id: Sha256
    path: tuple[Sha256, ...] = Field(max_length=63)


class Proof(BaseModel):
    """That an id is in a set, or is not.

    Attributes:
        id: the id that it is about.
        size: the number of ids in the set.
        leaves: of an inclusion the id's own; of an absence the two neighbours, or the first or the last id alone, or
            nothing where the set is empty.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal["cleanplate-proof-1"] = "cleanplate-proof-1"
    kind: Literal["inclusion", "absence"]
    id: Sha256
    size: int = Field(ge=0, lt=2**63)
    leaves: tuple[Leaf, ...] = Field(max_length=2)

    @classmethod
    def parse(cls, text: str | bytes) -> Proof:
        """Reads a proof's JSON.

        Raises:
            UserError: for anything else.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise UserError(
                f"this is no proof: {where}: {first['msg']}",
                field="--verify",
                remedy="give the file as `cleanplate prove` wrote it",
            ) from None


def root(leaves: Sequence[bytes]) -> bytes:
    """The Merkle tree hash of some leaves' contents, in their order (RFC 9162, section 2.1.1)."""
    return _levels([_leaf(content) for content in leaves])[-1] if leaves else hashlib.sha256().digest()


def digest(ids: Iterable[str]) -> str:
    """The digest of a set of ids, in hex. The order and repetitions make no difference. A million take two seconds.

    Raises:
        ValueError: for an id that is no sha256 in hex.
    """
    leaves = _contents(sorted(set(ids)))
    return _bound(len(leaves), root(leaves)).hex()


def prove(ids: Iterable[str], id_: str) -> Proof:
    """The proof that an id is among `ids`, or that it is not.

    Raises:
        ValueError: for an id that is no sha256 in hex.
    """
    ordered = sorted(set(ids))
    contents = _contents([*ordered, id_])[:-1]
    at = bisect.bisect_left(ordered, id_)
    present = at < len(ordered) and ordered[at] == id_
    shown = [at] if present else [i for i in (at - 1, at) if 0 <= i < len(ordered)]
    levels = _levels([_leaf(content) for content in contents]) if ordered else []
    leaves = tuple(Leaf(index=i, id=ordered[i], path=_path(levels, i)) for i in shown)
    return Proof(kind="inclusion" if present else "absence", id=id_, size=len(ordered), leaves=leaves)


def verify(proof: Proof, digest: str) -> bool:
    """Whether a proof holds for a set's digest: every leaf leads to it, and they are those that such a proof shows."""
    fits = [leaf.id for leaf in proof.leaves] == [proof.id] if proof.kind == "inclusion" else _is_gap(proof)
    if not proof.leaves:  # of the empty set
        return fits and _bound(0, hashlib.sha256().digest()).hex() == digest
    return fits and all(_leads_to(leaf, proof.size, digest) for leaf in proof.leaves)


def _is_gap(proof: Proof) -> bool:
    """Whether the leaves are neighbours with nothing between them, and the id would stand there."""
    places = [leaf.index for leaf in proof.leaves]
    if proof.size == 0:
        return not places
    if len(places) == 2:
        return places[1] == places[0] + 1 and proof.leaves[0].id < proof.id < proof.leaves[1].id
    if places == [0] and proof.id < proof.leaves[0].id:
        return True
    return places == [proof.size - 1] and proof.leaves[0].id < proof.id


def _leads_to(leaf: Leaf, size: int, digest: str) -> bool:
    """RFC 9162, section 2.1.3.2: the path has exactly the hashes that a tree of this size asks for."""
    if leaf.index >= size:
        return False
    found, path = _leaf(bytes.fromhex(leaf.id)), list(leaf.path)
    place, width = leaf.index, size
    while width > 1:
        if place ^ 1 < width:  # else it is the last of an odd number, and goes up as it is
            if not path:
                return False
            beside = bytes.fromhex(path.pop(0))
            found = _node(beside, found) if place % 2 else _node(found, beside)
        place, width = place // 2, (width + 1) // 2
    return not path and _bound(size, found).hex() == digest


def _levels(hashes: Sequence[bytes]) -> list[bytes]:
    """The tree from below, each level the hashes of its nodes in a row: it pairs those of the level under it, and an
    odd last one goes up as it is."""
    levels = [b"".join(hashes)]
    while len(below := levels[-1]) > 32:
        whole = len(below) - len(below) % 64
        above = [hashlib.sha256(b"\x01" + below[at : at + 64]).digest() for at in range(0, whole, 64)]
        levels.append(b"".join(above) + below[whole:])
    return levels


def _path(levels: list[bytes], index: int) -> tuple[str, ...]:
    path = []
    for level in levels[:-1]:
        beside = 32 * (index ^ 1)
        if beside < len(level):
            path.append(level[beside : beside + 32].hex())
        index //= 2
    return tuple(path)


def _leaf(content: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + content).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _bound(size: int, root: bytes) -> bytes:
    return hashlib.sha256(b"\x02" + size.to_bytes(8, "big") + root).digest()


def _contents(ids: Sequence[str]) -> list[bytes]:
    """The 32 bytes of each id: lower-case hex, so that the order of the texts is that of the bytes."""
    for id_ in ids:
        if not _ID.fullmatch(id_):
            raise ValueError(f"{id_!r} is no sha256 in lower-case hex")
    return [bytes.fromhex(id_) for id_ in ids]
