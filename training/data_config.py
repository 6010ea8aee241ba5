"""Where a run's pictures are read from while it trains, as a part of its job."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from training.roster import OrderInfo


class MemoryData(BaseModel):
    """Every worker decodes all of the manifest's pictures once and keeps them."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["memory"] = "memory"

    def order(self, batch_size: int | None) -> OrderInfo:
        """Args:
        batch_size: samples of a step where pictures are of several shapes; None where all have one.
        """
        return OrderInfo(batch_size=batch_size)

    def identity(self) -> dict[str, Any]:
        """What of it the trained weights depend on."""
        return {"kind": self.kind}


class ShardsData(BaseModel):
    """Pictures or latents are decoded once into files of blocks, which workers read as they need them."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["shards"] = "shards"
    window: int = Field(
        16_384,
        ge=1,
        description="rows that are shuffled together; of another window or block another model is trained",
    )
    block: int = Field(256, ge=1, le=65_536, description="rows that lie together and are read together")
    folder: str | None = Field(
        None, description="where shards are kept, local or s3://; null: `shards` in the job's output"
    )
    cache: str | None = Field(
        None, description="folder on each machine for blocks in use; null: in $XDG_CACHE_HOME/cleanplate or ~/.cache"
    )
    cache_bytes: int = Field(
        20 * 2**30,
        ge=2**20,
        description="of pictures in that folder, at most; as much again for captions' states that memory does not hold",
    )
    file_bytes: int = Field(256 * 2**20, ge=2**16, description="size of a shard's file before compression, about")

    @model_validator(mode="after")
    def _blocks_fill_windows(self) -> Self:
        if self.window % self.block:
            raise ValueError(f"window {self.window} is no multiple of block {self.block}")
        return self

    def order(self, batch_size: int | None) -> OrderInfo:
        """See `MemoryData.order`."""
        return OrderInfo(window=self.window, block=self.block, batch_size=batch_size)

    def identity(self) -> dict[str, Any]:
        """See `MemoryData.identity`."""
        return {"kind": self.kind, "window": self.window, "block": self.block}


DataConfig = Annotated[MemoryData | ShardsData, Field(discriminator="kind")]
