"""What the network predicts, and what a wrong prediction costs.

Shapes: pictures `x0`, noise, `xt` and predictions are (N, C, H, W); `level` is the noise level of each row, (N,), and
`xt = a x0 + s noise`. Two paths lead from picture to noise:

    epsilon, v_prediction, sample   the level is alpha-bar: a = sqrt(abar), s = sqrt(1 - abar)
    flow                            the level is the time t in [0, 1]: a = 1 - t, s = t, a straight line

`v = a noise - s x0` (Salimans & Ho 2022, arXiv 2202.00512, section 4 and appendix D). A flow predicts the velocity of
its line, `noise - x0` (Liu et al. 2022, arXiv 2209.03003; Lipman et al. 2022, arXiv 2210.02747).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["epsilon", "v_prediction", "sample", "flow"]


def _coefficients(prediction: Prediction, level: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    shape = (-1,) + (1,) * (like.ndim - 1)
    if prediction == "flow":
        return (1 - level).to(like.dtype).view(shape), level.to(like.dtype).view(shape)
    return level.sqrt().to(like.dtype).view(shape), (1 - level).sqrt().to(like.dtype).view(shape)


def q_sample(x0: Tensor, noise: Tensor, level: Tensor, prediction: Prediction = "epsilon") -> Tensor:
    """A draw of q(x_t | x_0) from the given standard normal noise (Ho et al. 2020, equation 4), on the prediction's
    path."""
    a, s = _coefficients(prediction, level, x0)
    return a * x0 + s * noise


def target(prediction: Prediction, x0: Tensor, noise: Tensor, level: Tensor) -> Tensor:
    """What a perfect network would answer."""
    if prediction == "epsilon":
        return noise
    if prediction == "sample":
        return x0
    if prediction == "flow":
        return noise - x0
    a, s = _coefficients(prediction, level, x0)
    return a * noise - s * x0


def to_x0(prediction: Prediction, output: Tensor, xt: Tensor, level: Tensor) -> Tensor:
    """The clean picture that an output implies. Of epsilon at alpha-bar 0 there is none."""
    a, s = _coefficients(prediction, level, xt)
    if prediction == "epsilon":
        return (xt - s * output) / a
    if prediction == "sample":
        return output
    if prediction == "flow":
        return xt - s * output
    return a * xt - s * output


def to_epsilon(prediction: Prediction, output: Tensor, xt: Tensor, level: Tensor) -> Tensor:
    """The noise that an output implies."""
    a, s = _coefficients(prediction, level, xt)
    if prediction == "epsilon":
        return output
    if prediction == "sample":
        return (xt - a * output) / s
    if prediction == "flow":
        return xt + a * output
    return s * xt + a * output


def to_v(prediction: Prediction, output: Tensor, xt: Tensor, level: Tensor) -> Tensor:
    """The velocity that an output implies: v, and for a flow that of its line."""
    if prediction in ("v_prediction", "flow"):
        return output
    a, s = _coefficients(prediction, level, xt)
    return a * to_epsilon(prediction, output, xt, level) - s * to_x0(prediction, output, xt, level)


def min_snr_weight(prediction: Prediction, abar: Tensor, gamma: float) -> Tensor:
    """The weight (N,) of each row's squared error (Hang et al. 2023, arXiv 2303.09556, section 3.4): on the error of
    x0 it is min(SNR, gamma)."""
    snr = abar / (1 - abar)
    return _for(prediction, snr.clamp(max=gamma), snr)


def soft_min_snr_weight(prediction: Prediction, abar: Tensor, gamma: float) -> Tensor:
    """Min-SNR without the kink: on the error of x0 it is SNR gamma / (SNR + gamma) (Crowson et al. 2024, arXiv
    2401.11605, section 3.4)."""
    snr = abar / (1 - abar)
    return _for(prediction, snr * gamma / (snr + gamma), snr)


def _for(prediction: Prediction, weight: Tensor, snr: Tensor) -> Tensor:
    """A weight of the error of x0 for the error of what is predicted: the squared errors of epsilon and v are that of
    x0 times SNR and SNR + 1."""
    if prediction == "flow":
        raise ValueError("a flow is weighted by how its times are drawn")
    if prediction == "epsilon":
        return weight / snr
    return weight if prediction == "sample" else weight / (snr + 1)


def loss(
    output: Tensor,
    x0: Tensor,
    noise: Tensor,
    level: Tensor,
    *,
    prediction: Prediction,
    min_snr_gamma: float | None = None,
    soft_min_snr_gamma: float | None = None,
) -> Tensor:
    """Mean squared error in float32, a scalar: the simple loss of Ho et al. 2020, equation 14, or a weighted one."""
    error = (output.float() - target(prediction, x0, noise, level).float()).square().flatten(1).mean(dim=1)
    if min_snr_gamma is not None:
        error = error * min_snr_weight(prediction, level, min_snr_gamma).to(error.dtype)
    if soft_min_snr_gamma is not None:
        error = error * soft_min_snr_weight(prediction, level, soft_min_snr_gamma).to(error.dtype)
    return error.mean()


def table(alphas_cumprod: object, device: torch.device | str) -> Tensor:
    """alpha-bar as the float64 (T,) tensor that rows are looked up in."""
    return torch.as_tensor(alphas_cumprod, dtype=torch.float64, device=device)
