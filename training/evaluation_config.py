"""How checkpoints are evaluated while a run goes on, as a part of its job."""

from __future__ import annotations

import hashlib
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from curation.errors import UserError

BY_LOSS = "loss"
"""`best_by` where checkpoints are ranked by what they were trained with, without an evaluation."""
HELD_OUT_LOSS = "loss_held_out"
METRICS = (
    "clip_score", "clip_retrieval", "fd_efficientnet_lite0", "kd_efficientnet_lite0", "precision", "recall",
    HELD_OUT_LOSS,
)  # fmt: skip
"""What `best_by` can name of an evaluation."""


class EvaluationConfig(BaseModel):
    """Evaluations of checkpoints, in a process of their own while training goes on, one at a time, newest first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    every: int | None = Field(None, ge=1, description="images between two evaluations; null: one, at the end")
    samples: int = Field(64, ge=8, le=100_000, description="pictures that are drawn for each")
    pictures: int = Field(512, ge=8, le=100_000, description="training pictures at most that samples are compared with")
    prompts: tuple[str, ...] | None = Field(
        None, min_length=1, description="what is drawn, the same each time; null: captions of training pictures"
    )
    holdout: Annotated[float, Field(gt=0, le=0.5)] | str | None = Field(
        None,
        description="pictures that are not trained on: a share of the manifest, such as 0.05, which is taken out of "
        "the training set, or another manifest; null: none, and so no floors and no validation loss",
    )
    loss_buckets: int = Field(8, ge=0, le=100, description="ranges of log-SNR of the validation loss; 0: none")
    loss_pictures: int = Field(64, ge=1, le=10_000, description="of each kind that losses are measured on")
    cpus: int = Field(1, ge=1, le=1024, description="processors of an evaluation, and its threads")
    gpus: float = Field(
        0, ge=0, le=1, description="of an evaluation, a share for one that it has with others; 0: on processors"
    )
    seed: int = Field(0, ge=0, le=2**31, description="of noise, of which pictures, and of intervals")

    @property
    def held_out_share(self) -> float:
        """The share of the manifest that is not trained on."""
        return self.holdout if isinstance(self.holdout, float) else 0.0


def held_out(seed: int, id_: str, share: float) -> bool:
    """Whether an input is in the share that is not trained on: whatever else a manifest holds, the answer stays."""
    place = int.from_bytes(hashlib.sha256(f"{seed}:holdout:{id_}".encode()).digest()[:8], "big")
    return place < share * 2**64


def refuse_best(best_by: str, keep_best: int, bundle: str, evaluation: EvaluationConfig | None) -> None:
    """Refuses a ranking of checkpoints by what is not measured, or a best one that is not kept.

    Raises:
        UserError: with the field and its remedy.
    """
    if bundle == "best" and not keep_best:
        raise UserError(
            "bundle: best asks for a checkpoint that is not kept", field="bundle", remedy="set keep_best_checkpoints: 1"
        )
    if best_by == BY_LOSS:
        return
    if best_by not in METRICS:
        raise UserError(f"{best_by!r} is no metric", field="best_by", remedy=f"use loss, {', '.join(METRICS)}")
    if evaluation is None:
        raise UserError(
            f"{best_by} is measured by evaluations, and the job asks for none",
            field="best_by",
            remedy="set `evaluation`, e.g. {every: 10000}, or use loss",
        )
    if best_by == HELD_OUT_LOSS and (evaluation.holdout is None or not evaluation.loss_buckets):
        raise UserError(
            "the loss on held-out pictures is not measured",
            field="best_by",
            remedy="set evaluation.holdout, e.g. 0.05, and evaluation.loss_buckets",
        )
