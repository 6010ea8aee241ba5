"""The U-Net: diffusers' `UNet2DConditionModel` in presets from 1 to 860 million parameters."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from curation import torchvision_ops
from curation.errors import UserError


class UnetShape(BaseModel):
    """A U-Net without its inputs' sizes."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    cross_attention: tuple[bool, ...]
    attention_heads: int


# `tiny` attends at the lowest resolution only: of what was tried, that learns most per second on a CPU.
PRESETS: dict[str, UnetShape] = {
    "nano": UnetShape(
        block_out_channels=(16, 32, 64), layers_per_block=1, cross_attention=(False, False, True), attention_heads=4
    ),
    "tiny": UnetShape(
        block_out_channels=(32, 64, 96), layers_per_block=1, cross_attention=(False, False, True), attention_heads=8
    ),
    "small": UnetShape(
        block_out_channels=(64, 128, 192, 256),
        layers_per_block=2,
        cross_attention=(False, False, True, True),
        attention_heads=8,
    ),
    "base": UnetShape(
        block_out_channels=(128, 256, 384, 512),
        layers_per_block=2,
        cross_attention=(False, True, True, True),
        attention_heads=8,
    ),
    "large": UnetShape(
        block_out_channels=(224, 448, 672, 896),
        layers_per_block=2,
        cross_attention=(False, True, True, True),
        attention_heads=14,
    ),
    # the widths and depths of Stable Diffusion's (Rombach et al. 2022, arXiv 2112.10752)
    "sd": UnetShape(
        block_out_channels=(320, 640, 1280, 1280),
        layers_per_block=2,
        cross_attention=(True, True, True, False),
        attention_heads=8,
    ),
}


class UnetConfig(BaseModel):
    """`kind: unet`: a preset by name; any part of it can be overridden."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["unet"] = "unet"
    preset: Literal["nano", "tiny", "small", "base", "large", "sd"] = Field(
        "tiny", description="about 1, 2.5, 33, 135, 400 or 860 million parameters"
    )
    block_out_channels: tuple[int, ...] | None = Field(None, description="channels of each resolution, highest first")
    layers_per_block: int | None = Field(None, ge=1, le=8, description="residual blocks at each resolution")
    cross_attention: tuple[bool, ...] | None = Field(
        None, description="whether each resolution attends to the caption; the middle always does"
    )
    attention_heads: int | None = Field(None, ge=1, description="heads of every attention layer")

    def shape(self) -> UnetShape:
        """The preset with its overrides.

        Raises:
            UserError: overrides that contradict each other.
        """
        given = self.model_dump(exclude={"kind", "preset"}, exclude_none=True)
        if "block_out_channels" in given and "cross_attention" not in given:
            given["cross_attention"] = (*(False,) * (len(given["block_out_channels"]) - 1), True)
        shape = UnetShape.model_validate({**PRESETS[self.preset].model_dump(), **given})
        if not shape.block_out_channels or len(shape.cross_attention) != len(shape.block_out_channels):
            raise UserError(
                f"{len(shape.cross_attention)} cross_attention entries for {len(shape.block_out_channels)} resolutions",
                field="network.cross_attention",
                remedy="give one true or false per entry of block_out_channels",
            )
        for channels in shape.block_out_channels:
            if channels < 1 or channels % _groups(shape) or channels % shape.attention_heads:
                raise UserError(
                    f"{channels} channels do not divide by {_groups(shape)} groups and {shape.attention_heads} heads",
                    field="network.block_out_channels",
                    remedy="use multiples of 32",
                )
        return shape


def _groups(shape: UnetShape) -> int:
    return min(32, *shape.block_out_channels)


def build(config: UnetConfig, *, channels: int, side: int, width: int) -> Any:
    """A freshly initialised `UNet2DConditionModel` (from torch's global generator: seed it first).

    Args:
        channels: C of what it denoises.
        side: height and width of what it denoises.
        width: of the states that it is conditioned on.

    Raises:
        UserError: a side that the levels do not divide.
    """
    shape = config.shape()
    levels = len(shape.block_out_channels)
    if side % 2 ** (levels - 1):
        raise UserError(
            f"{side} positions a side do not divide by 2^{levels - 1} ({levels} levels)",
            field="patch_size",
            remedy="choose a patch_size and network.block_out_channels that divide the manifest's image_size",
        )
    torchvision_ops.declare()  # before diffusers, which imports torchvision where that is installed
    from diffusers import UNet2DConditionModel

    down = ["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in shape.cross_attention]
    up = ["CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(shape.cross_attention)]
    return UNet2DConditionModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=shape.block_out_channels,
        layers_per_block=shape.layers_per_block,
        down_block_types=tuple(down),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=tuple(up),
        cross_attention_dim=width,
        # The caption's pooled state joins the timestep's embedding, which scales and shifts every block: of what was
        # tried, nothing makes a small network heed its captions sooner.
        class_embed_type="projection",
        projection_class_embeddings_input_dim=width,
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=shape.attention_heads,  # diffusers' name for the number of heads in this model
        norm_num_groups=_groups(shape),
    )
