"""Networks by name, and the one way in which they are asked.

    unet   `training.unet`, diffusers' UNet2DConditionModel
    dit    `training.dit`, diffusers' PixArtTransformer2DModel

Whatever the kind, a network takes noisy pictures `xt` (N, C, h, w), the noise level `t` (N,) and what it is told
(`training.text.Conditioning`), and answers a tensor of the shape of `xt`.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from training import dit, unet
from training.dit import DitConfig
from training.text import Conditioning
from training.unet import UnetConfig

NetworkConfig = Annotated[UnetConfig | DitConfig, Field(discriminator="kind")]


def build(config: UnetConfig | DitConfig, *, channels: int, side: int, width: int) -> Any:
    """A freshly initialised network (from torch's global generator: seed it first).

    Args:
        channels: C of what it denoises.
        side: height and width of what it denoises.
        width: of the states that it is conditioned on.

    Raises:
        UserError: sizes that do not fit the network.
    """
    if isinstance(config, DitConfig):
        return dit.build(config, channels=channels, side=side, width=width)
    return unet.build(config, channels=channels, side=side, width=width)


def predict(network: Any, xt: Tensor, t: Tensor, told: Conditioning, *, through: Any = None) -> Tensor:
    """The network's output.

    Args:
        network: as `build` made it, or anything that is called as a `UNet2DConditionModel` is.
        xt: (N, C, h, w).
        t: (N,), the timestep, whole numbers; of a flow, time times T.
        through: what stands around the network and is called in its place, e.g. DistributedDataParallel.
    """
    call = network if through is None else through
    if folder_of(network) == "transformer":
        # it has no place for the pooled state: that becomes the first token
        states = torch.cat([told.pooled[:, None], told.states], dim=1)
        mask = torch.cat([told.mask.new_ones(len(xt), 1), told.mask], dim=1)
        output: Tensor = call(
            xt, encoder_hidden_states=states, timestep=t, encoder_attention_mask=mask, return_dict=False
        )[0]
        return output
    output = call(xt, t, told.states, class_labels=told.pooled, encoder_attention_mask=told.mask, return_dict=False)[0]
    return output


def folder_of(network: Any) -> str:
    """Where diffusers' pipelines keep a network of this kind."""
    # by name: sharding puts a class of its own in front, and whoever serves by ONNX has not imported diffusers
    names = {cls.__name__ for cls in type(network).__mro__}
    return "transformer" if "PixArtTransformer2DModel" in names else "unet"
