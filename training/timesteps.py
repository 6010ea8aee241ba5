"""Which noise level each sample is trained at: a function of the seed and of the sample's global index alone.

A level is drawn through its quantile function, from a uniform number: an even one over all levels, or a logit-normal
one, which favours the middle (Esser et al. 2024, arXiv 2403.03206, section 3.1).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:  # a job is read without torch
    from torch import Tensor

_OFFSET = 1  # the step of the draws that batches make; samples have step 0


class _Timesteps(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    stratified: bool = Field(
        False, description="each batch covers all levels evenly, a part per sample: less noise in loss and gradient"
    )


class UniformTimesteps(_Timesteps):
    """All levels equally often."""

    kind: Literal["uniform"] = "uniform"

    def quantile(self, u: Tensor) -> Tensor:
        """Float64 (N,) in [0, 1): the share of the way from picture to noise, of u in [0, 1)."""
        return u


class LogitNormalTimesteps(_Timesteps):
    """A normal distribution of log(t / (1 - t))."""

    kind: Literal["logit_normal"] = "logit_normal"
    mean: float = Field(0.0, ge=-10, le=10, description="above 0: more often at noisy levels")
    std: float = Field(1.0, gt=0, le=10, description="larger: more often at both ends")

    def quantile(self, u: Tensor) -> Tensor:
        """Float64 (N,) in [0, 1], of u in [0, 1)."""
        logit = self.mean + self.std * math.sqrt(2) * (2 * u - 1).erfinv()
        return 1 / (1 + (-logit).exp())  # torch's sigmoid rounds the rest of a vector otherwise than its whole lanes


TimestepConfig = Annotated[UniformTimesteps | LogitNormalTimesteps, Field(discriminator="kind")]


def times(config: UniformTimesteps | LogitNormalTimesteps, seed: int, index: Tensor, batch_size: int) -> Tensor:
    """Float64 (N,) in [0, 1]: the shares of the way from picture to noise of samples with these global indices (N,).

    Stratified, the samples of one global batch share the interval out among them, each uniform in its own part: in
    order, from a part that is drawn anew for every batch (the low-discrepancy sampler of Kingma et al. 2021, arXiv
    2107.00630, appendix I.1, with jitter). So every sample by itself is still drawn from the whole distribution.
    """
    from training.randomness import Purpose, keys, uniform

    u = uniform(seed, Purpose.TIMESTEP, index)
    if config.stratified:
        offset = keys(seed, Purpose.TIMESTEP, index // batch_size, _OFFSET) % batch_size
        u = ((index + offset) % batch_size + u) / batch_size
    return config.quantile(u)


def levels(times: Tensor, count: int) -> Tensor:
    """int64 (N,): the noise levels, of `count`, at these shares (N,) of the way."""
    import torch

    return (times * count).to(torch.int64).clamp(max=count - 1)
