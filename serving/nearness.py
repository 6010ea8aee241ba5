"""What a serve job says of training pictures near to what is drawn: for credit (`attribution`), and against copies
(`near_copies`). Both ask the model's index (`cleanplate index`)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from curation import storage

NearCopyAction = Literal["flag", "block", "reseed"]
NearCopyPolicy = Literal["off", "flag", "block", "reseed"]


class AttributionConfig(BaseModel):
    """Which training pictures are named beside what is drawn, and what is kept for credit or payment."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    enabled: bool = Field(True, description="false: nobody is named; near copies are looked for all the same")
    index: str | None = Field(
        None, description="folder of the index; null: the one attached to the version, or beside the bundle"
    )
    neighbours: int = Field(5, ge=1, le=100, description="training pictures that are named for each picture")
    thumbnails: bool = Field(True, description="whether those that the index has are shown")
    ledger_every_s: float = Field(
        30.0, ge=0, description="seconds until the takedown ledgers are asked again what may no longer be named"
    )
    log: str | None = Field(
        None, description="folder, local or in a bucket, in which what was served is added up by training picture, for "
        "`cleanplate report --attribution`; null: nowhere"
    )  # fmt: skip
    log_every_s: float = Field(
        60.0,
        gt=0,
        description="seconds until what is added up is written; a process that is killed loses these at most",
    )

    def rooted(self) -> AttributionConfig:
        """With its relative paths made absolute."""
        index = None if self.index is None else storage.absolute(self.index)
        log = None if self.log is None else storage.absolute(self.log)
        return self.model_copy(update={"index": index, "log": log})


class NearCopiesConfig(BaseModel):
    """What is done with a picture that is nearer to a training picture than real pictures are to each other."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    action: NearCopyPolicy = Field(
        "block",
        description="flag: it leaves and is said to be one; block: it does not leave; reseed: it is drawn again with "
        "another seed that follows from the first, and does not leave if that does not help",
    )
    false_positives: float = Field(
        0.01,
        ge=0,
        le=0.2,
        description="share of real pictures that may be taken for copies; see the index's calibration",
    )
    max_ratio: float = Field(
        0.5, gt=0, lt=1, description="whatever the calibration says, a picture is no copy unless it is nearer than "
        "this share of the training picture's mean distance to its own nearest others"
    )  # fmt: skip
    ratio: float | None = Field(None, gt=0, lt=1, description="in place of the calibration, in both spaces")
    max_reseeds: int = Field(2, ge=1, le=8, description="of a picture, with `reseed`; each costs as much as the first")
    revoked: Literal["block", "alike"] = Field(
        "block", description="copies of what was taken down never leave, or are treated like others"
    )
