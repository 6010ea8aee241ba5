"""Networks by name, and the one way in which they are asked.

    unet         `training.unet`, diffusers' UNet2DConditionModel
    dit          `training.dit`, diffusers' PixArtTransformer2DModel
    video_unet   `training.video`, diffusers' UNet3DConditionModel, for films

Whatever the kind, a network takes noisy pictures `xt` (N, C, h, w), or films (N, C, F, h, w), the noise level `t` (N,)
and what it is told (`training.text.Conditioning`), and answers a tensor of the shape of `xt`.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from training import dit, unet, video
from training.dit import DitConfig
from training.text import Conditioning
from training.unet import UnetConfig
from training.video import VideoUnetConfig

AnyConfig = UnetConfig | DitConfig | VideoUnetConfig
NetworkConfig = Annotated[AnyConfig, Field(discriminator="kind")]


def build(config: AnyConfig, *, channels: int, side: int, width: int) -> Any:
    """A freshly initialised network (from torch's global generator: seed it first).

    Args:
        channels: C of what it denoises.
        side: height and width of what it denoises.
        width: of the states that it is conditioned on.

    Raises:
        UserError: sizes that do not fit the network.
    """
    if isinstance(config, VideoUnetConfig):
        return video.build(config, channels=channels, side=side, width=width)
    if isinstance(config, DitConfig):
        return dit.build(config, channels=channels, side=side, width=width)
    return unet.build(config, channels=channels, side=side, width=width)


def predict(network: Any, xt: Tensor, t: Tensor, told: Conditioning, *, through: Any = None) -> Tensor:
    """The network's output.

    Args:
        network: as `build` made it, or anything that is called as a `UNet2DConditionModel` is.
        xt: (N, C, h, w), or (N, C, F, h, w).
        t: (N,), the timestep, whole numbers; of a flow, time times T.
        through: what stands around the network and is called in its place, e.g. DistributedDataParallel.
    """
    call = network if through is None else through
    if _is(network, "UNet3DConditionModel"):
        # it takes no mask, and without one the states of a prompt would depend on those beside it: it attends to the
        # pooled state alone
        film: Tensor = call(xt, t, told.pooled[:, None], return_dict=False)[0]
        return film
    if _is(network, "PixArtTransformer2DModel"):
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
    return "transformer" if _is(network, "PixArtTransformer2DModel") else "unet"


def _is(network: Any, name: str) -> bool:
    # by name: sharding puts a class of its own in front, and whoever serves by ONNX has not imported diffusers
    return any(cls.__name__ == name for cls in type(network).__mro__)
