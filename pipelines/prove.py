"""`cleanplate prove`: whether a picture was in a model's training set, so that a stranger can check it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel

from curation.errors import UserError

if TYPE_CHECKING:
    from training.dependencies import Dependency
    from training.merkle import Proof
    from training.tracking import ModelVersion


class ProvenOfDependency(BaseModel):
    """What a proof says of a model that the version was made from; without one, `why` says why there is none."""

    kind_of_model: str  # teacher, autoencoder
    model: str  # as it calls itself
    sha256: str  # of its bundle
    kind: Literal["inclusion", "absence"] | None = None
    size: int | None = None
    digest: str | None
    proof: str | None = None
    why: str | None = None


class Proven(BaseModel):
    """What a proof says. `model` and `version` are those that it was made for; None where a proof was checked."""

    kind: Literal["inclusion", "absence"]
    id: str
    size: int
    digest: str
    holds: bool
    model: str | None = None
    version: str | None = None
    proof: str
    made_from: list[ProvenOfDependency] = []


def run(sha256: str, *, model: str | None, version: str | None, out: str) -> Proven:
    """Writes the proof that a picture was in a model version's training set, or that it was not.

    What a version was made from, a student's teacher at any depth, has a training set of its own: the proof against
    each one's digest is written beside the first, with the first digits of the model's sha256 in its name.

    Args:
        sha256: of the picture's file, in hex, or the file.
        model: `models:/NAME/3`, `models:/NAME@alias`, NAME or a bundle's folder; None for the one that is registered.
        version: of the one that is registered; or of `model`, where that is a name.
        out: the JSON file to write.

    Raises:
        UserError: no such model or version, or one whose training set was not kept; a file that cannot be written.
    """
    from training import merkle, tracking

    id_ = _id(sha256)
    name = model or tracking.only_model()
    if version is not None:
        name = f"models:/{name.removeprefix('models:/')}/{version}"
    is_folder = not name.startswith("models:/") and (name.startswith("s3://") or Path(name).is_dir())
    found = tracking.resolve(name) if is_folder else tracking.find(name)
    proof = merkle.prove(tracking.training_set(found).ids, id_)
    digest = found.tags["training_set_digest"]
    if not merkle.verify(proof, digest):
        raise AssertionError("our own proof does not hold")
    _write(proof, out)
    return Proven(
        kind=proof.kind,
        id=id_,
        size=proof.size,
        digest=digest,
        holds=True,
        model=found.name,
        version=found.version,
        proof=out,
        made_from=[_of_dependency(found, dependency, id_, out) for dependency in tracking.dependencies_of(found)],
    )


def _of_dependency(version: ModelVersion, dependency: Dependency, id_: str, out: str) -> ProvenOfDependency:
    from training import merkle, tracking

    made = ProvenOfDependency(
        kind_of_model=dependency.kind, model=dependency.name, sha256=dependency.sha256, digest=None
    )
    try:
        roster = tracking.dependency_set(version, dependency)
    except UserError as error:
        return made.model_copy(update={"why": error.message})
    proof = merkle.prove(roster.ids, id_)
    if not merkle.verify(proof, roster.info.digest):
        raise AssertionError("our own proof does not hold")
    beside = str(Path(out).with_suffix(f".{dependency.kind}-{dependency.sha256[:12]}.json"))
    _write(proof, beside)
    told = {"kind": proof.kind, "size": proof.size, "digest": roster.info.digest, "proof": beside}
    return made.model_copy(update=told)


def _write(proof: Proof, out: str) -> None:
    try:
        Path(out).write_text(proof.model_dump_json(indent=1) + "\n")
    except OSError as error:
        raise UserError(
            f"cannot write {out}: {error}", field="--out", remedy="name a file that can be written"
        ) from None


def check(path: str, digest: str) -> Proven:
    """Checks a proof against a digest; neither a model nor its training set is needed.

    Raises:
        UserError: for a file that is no proof.
    """
    from training import merkle

    try:
        proof = merkle.Proof.parse(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"no proof at {path}: {error}", field="--verify", remedy="give a file that exists") from None
    digest = digest.strip().lower()
    holds = merkle.verify(proof, digest)
    return Proven(kind=proof.kind, id=proof.id, size=proof.size, digest=digest, holds=holds, proof=path)


def _id(given: str) -> str:
    """A sha256 as it stands, or a file's."""
    text = given.strip().lower()
    if len(text) == 64 and not set(text) - set("0123456789abcdef"):
        return text
    if Path(given).is_file():
        return hashlib.sha256(Path(given).read_bytes()).hexdigest()
    raise UserError(
        f"{given!r} is neither the sha256 of a file nor a file",
        field="SHA256",
        remedy="give the 64 hex digits that `sha256sum FILE` prints, or the file",
    )


def summary(result: Proven) -> list[str]:
    """The result for a person."""
    was = "was" if result.kind == "inclusion" else "was NOT"
    said = f"{result.id} {was} among the {result.size} pictures of this training set"
    if result.model is None:
        return [f"the proof holds: {said}" if result.holds else "this proof does NOT hold for this digest"]
    return [
        f"{result.model} version {result.version}: {said}",
        f"proof   {result.proof}",
        f"digest  {result.digest}",
        f"anybody checks it with: cleanplate prove --verify {result.proof} --digest {result.digest}",
        "or with nothing but Python: docs/verify_proof.py",
        *(line for model in result.made_from for line in _summary_of(model)),
    ]


def _summary_of(made: ProvenOfDependency) -> list[str]:
    what = f"its {made.kind_of_model} {made.model}"
    if made.kind is None:
        return [f"made from {what}: NOTHING is proven of what that was trained on ({made.why})"]
    was = "was" if made.kind == "inclusion" else "was NOT"
    return [
        f"made from {what}: the picture {was} among the {made.size} pictures of its training set",
        f"proof   {made.proof}",
        f"digest  {made.digest}",
    ]
