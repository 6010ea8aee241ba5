"""The network of moving pictures: diffusers' `UNet3DConditionModel` (Wang et al. 2023, arXiv 2308.06571): a U-Net whose
every layer looks at frames one by one, and then along time.

A film is F frames, (3, F, H, W); its frames are patched like pictures (`training.space`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from curation import torchvision_ops
from curation.errors import UserError


@dataclass(frozen=True)
class VideoShape:
    """Channels of each resolution, highest first; whether it attends, in space, time and to what it is told."""

    block_out_channels: tuple[int, ...]
    attends: tuple[bool, ...]
    layers_per_block: int
    head_dim: int


PRESETS: dict[str, VideoShape] = {
    "nano": VideoShape((16, 32), (False, True), 1, 8),
    "tiny": VideoShape((32, 64, 96), (False, False, True), 1, 16),
    "small": VideoShape((64, 128, 192, 256), (False, False, True, True), 2, 32),
    # the widths and depths of ModelScope's
    "modelscope": VideoShape((320, 640, 1280, 1280), (True, True, True, False), 2, 64),
}


class VideoUnetConfig(BaseModel):
    """`kind: video_unet`: a preset by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["video_unet"] = "video_unet"
    preset: Literal["nano", "tiny", "small", "modelscope"] = Field(
        "tiny", description="about 0.5, 4, 55 or 1,400 million parameters"
    )


def build(config: VideoUnetConfig, *, channels: int, side: int, width: int) -> Any:
    """A freshly initialised `UNet3DConditionModel` (from torch's global generator: seed it first).

    Args:
        channels: C of a frame of what it denoises.
        side: height and width of a frame.
        width: of the states that it is conditioned on.

    Raises:
        UserError: a side that the levels do not divide.
    """
    shape = PRESETS[config.preset]
    levels = len(shape.block_out_channels)
    if side % 2 ** (levels - 1):
        raise UserError(
            f"{side} positions a side do not divide by 2^{levels - 1} ({levels} levels)",
            field="patch_size",
            remedy="choose a patch_size that divides the manifest's image_size, or a smaller preset",
        )
    torchvision_ops.declare()  # before diffusers, which imports torchvision where that is installed
    from diffusers import UNet3DConditionModel

    down = ["CrossAttnDownBlock3D" if attends else "DownBlock3D" for attends in shape.attends]
    up = ["CrossAttnUpBlock3D" if attends else "UpBlock3D" for attends in reversed(shape.attends)]
    return UNet3DConditionModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=shape.block_out_channels,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        layers_per_block=shape.layers_per_block,
        cross_attention_dim=width,
        attention_head_dim=shape.head_dim,
        norm_num_groups=min(32, *shape.block_out_channels),
    )
