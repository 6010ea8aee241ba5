"""The models that a model was made from: they were trained on pictures too, and what they learned went into it.

A student learns what its teacher answers; a latent model draws with an autoencoder. What is true of their training sets
counts for it as well, at any depth. So a bundle names all of them (`BundleInfo.depends_on`), also those of its teacher;
a run's and a version's tags say the same; and copies of their training sets lie beside the run's own, so that an answer
needs nobody else's records:

    <run>/dependencies/<sha256>.parquet         as `training.roster` writes them, by the sha256 of the model's bundle
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from curation import storage
from curation.errors import UserError

if TYPE_CHECKING:
    from training.bundle import BundleInfo
    from training.roster import Roster

FOLDER = "dependencies"
TAG = "depends_on"
MOST = 8
"""Models that one may be made from: more is no chain of students but a mistake, and MLflow's tags are short."""
_LINE = r"^[^\x00-\x1f]+$"


class Statement(BaseModel):
    """Somebody's word that a model was not trained on what takedowns reach, where nobody has its training set to look.

    It is a statement and not a proof: whoever shows an answer that rests on it shows it, too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    by: str = Field(max_length=200, pattern=_LINE, description="who says so: a person, and for whom")
    ground: str = Field(max_length=1000, pattern=_LINE, description="on what ground, e.g. its authors' data card")
    date: datetime.date = Field(description="when they said so")

    @property
    def told(self) -> str:
        """For a person, behind the model's name."""
        return (
            f"{self.by} stated on {self.date} that it was not trained on what takedowns reach ({self.ground}): a "
            "statement, not a proof"
        )


class Dependency(BaseModel):
    """A model that another was made from. What is not known of it is null; then it may have been trained on anything.

    Raises:
        ValidationError: a sha256 that is none.
    """

    model_config = ConfigDict(frozen=True)
    kind: Literal["teacher", "autoencoder"]
    name: str = Field(description="as it calls itself")
    sha256: str = Field(
        pattern="^[0-9a-f]{64}$",
        description="of its bundle's `cleanplate.json`, which holds that of every other file; of its weights where it "
        "has no bundle",
    )
    manifest_id: str | None = None
    training_set_digest: str | None = Field(None, description="Merkle digest, as a bundle has it of its own set")
    training_rows: int | None = None
    ledger_uri: str | None = Field(None, description="the takedown ledgers that were asked when it was trained")
    ledger_version: str | None = Field(None, description="what they held")
    through: str | None = Field(
        None, description="sha256 of the model that was made from it; null: it is used directly"
    )
    statement: Statement | None = Field(
        None, description="of whoever vouches for it, where its training set is not on record"
    )

    @property
    def vouched(self) -> Statement | None:
        """The statement, where there is nothing better."""
        return self.statement if self.training_set_digest is None else None


_LIST = TypeAdapter(tuple[Dependency, ...])


def made_from(kind: Literal["teacher", "autoencoder"], sha256: str, info: BundleInfo) -> tuple[Dependency, ...]:
    """A model with a bundle, and after it all that it was made from itself.

    Args:
        sha256: of its `cleanplate.json`.

    Raises:
        UserError: more than `MOST` of them.
    """
    direct = Dependency(
        kind=kind,
        name=info.name,
        sha256=sha256,
        manifest_id=info.manifest_id,
        training_set_digest=info.training_set_digest if info.training_set_digest_kind == "merkle" else None,
        training_rows=info.training_rows,
        ledger_uri=info.ledger_uri,
        ledger_version=info.takedown_ledger_version,
    )
    return tuple(unique([direct, *(behind(sha256, further) for further in of_info(info))]))


def behind(sha256: str, further: Dependency) -> Dependency:
    """What a model names as a dependency of its own, as what was made from that model names it."""
    return further if further.through is not None else further.model_copy(update={"through": sha256})


def unique(found: Iterable[Dependency]) -> list[Dependency]:
    """Each once, the first of each.

    Raises:
        UserError: more than `MOST` of them.
    """
    by_sha256: dict[str, Dependency] = {}
    for dependency in found:
        by_sha256.setdefault(dependency.sha256, dependency)
        if len(by_sha256) > MOST:
            raise UserError(
                f"it is made from more than {MOST} other models",
                field="teacher",
                remedy="distil from a model that was trained on pictures",
            )
    return list(by_sha256.values())


def of_info(info: BundleInfo) -> tuple[Dependency, ...]:
    """What a bundle was made from; an older student's names no more of its teacher than the sha256."""
    return _with_teacher(info.depends_on, info.distilled_from)


def of_tags(tags: Mapping[str, str]) -> tuple[Dependency, ...]:
    """As `of_info`, of the tags of a version or a run.

    Raises:
        UserError: they are damaged.
    """
    try:
        return _with_teacher(_LIST.validate_json(tags.get(TAG, "[]")), tags.get("distilled_from"))
    except ValidationError as error:
        raise UserError(
            f"what it was made from cannot be read in its tag {TAG}: {error.errors()[0]['msg']}",
            field="model",
            remedy="register its bundle again under another name",
        ) from None


def to_tag(found: Iterable[Dependency]) -> str:
    """The inverse of `of_tags`."""
    return _LIST.dump_json(tuple(found), exclude_none=True).decode()


def _with_teacher(found: tuple[Dependency, ...], distilled_from: str | None) -> tuple[Dependency, ...]:
    if distilled_from is None or any(dependency.sha256 == distilled_from for dependency in found):
        return found
    return (Dependency(kind="teacher", name="of an older student", sha256=distilled_from), *found)


def keep(folder: str, rosters: Mapping[str, Roster]) -> None:
    """Puts copies of training sets, by the sha256 of their models, into a run's folder."""
    for sha256, roster in rosters.items():
        storage.write_bytes(storage.join(folder, FOLDER, file_of(sha256)), roster.to_parquet())


def file_of(sha256: str) -> str:
    """The name of the copy of a model's training set."""
    return f"{sha256}.parquet"
