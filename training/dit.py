"""The diffusion transformer (Peebles & Xie 2023, arXiv 2212.09748) with cross-attention to what it is told: diffusers'
`PixArtTransformer2DModel` (Chen et al. 2023, arXiv 2310.00426), in the sizes of the first paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from curation import torchvision_ops
from curation.errors import UserError


@dataclass(frozen=True)
class DitShape:
    """Layers, and heads of `head_dim` channels each."""

    layers: int
    heads: int
    head_dim: int = 64


PRESETS: dict[str, DitShape] = {
    "nano": DitShape(4, 4, 24),
    "tiny": DitShape(6, 4, 48),
    "S": DitShape(12, 6),
    "B": DitShape(12, 12),
    "L": DitShape(24, 16),
    "XL": DitShape(28, 16, 72),
}


class DitConfig(BaseModel):
    """`kind: dit`: a preset by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["dit"] = "dit"
    preset: Literal["nano", "tiny", "S", "B", "L", "XL"] = Field(
        "tiny", description="about 0.7, 4, 30, 120, 410 or 610 million parameters"
    )
    token_size: int = Field(
        1, ge=1, le=16, description="positions of a side that make one token; patch_size has cut pictures before"
    )


def build(config: DitConfig, *, channels: int, side: int, width: int) -> Any:
    """A freshly initialised `PixArtTransformer2DModel` (from torch's global generator: seed it first).

    Args:
        channels: C of what it denoises.
        side: height and width of what it denoises.
        width: of the states that it is conditioned on.

    Raises:
        UserError: a side that tokens do not divide.
    """
    if side % config.token_size:
        raise UserError(
            f"{side} positions a side do not divide into tokens of {config.token_size}",
            field="network.token_size",
            remedy="choose a token_size that divides image_size / patch_size",
        )
    torchvision_ops.declare()  # before diffusers, which imports torchvision where that is installed
    from diffusers import PixArtTransformer2DModel
    from torch import nn

    shape = PRESETS[config.preset]
    network = PixArtTransformer2DModel(
        num_attention_heads=shape.heads,
        attention_head_dim=shape.head_dim,
        in_channels=channels,
        out_channels=channels,
        num_layers=shape.layers,
        cross_attention_dim=shape.heads * shape.head_dim,
        caption_channels=width,
        sample_size=side,
        patch_size=config.token_size,
        use_additional_conditions=False,
    )
    # adaLN-Zero (section 3.2 there): diffusers leaves it to whoever trains. Every block begins as the identity and the
    # output as zero; without it deep ones hardly learn.
    nn.init.zeros_(network.proj_out.weight)
    nn.init.zeros_(network.proj_out.bias)
    nn.init.zeros_(network.adaln_single.linear.weight)
    nn.init.zeros_(network.adaln_single.linear.bias)
    for block in network.transformer_blocks:
        block.scale_shift_table.data.zero_()
        nn.init.zeros_(block.attn2.to_out[0].weight)
        nn.init.zeros_(block.attn2.to_out[0].bias)
    return network
