"""What the network predicts, and what a wrong prediction costs.

Shapes: pictures `x0`, noise, `xt` and predictions are (N, C, H, W); `abar` is alpha-bar of each row, (N,).
With a = sqrt(abar) and s = sqrt(1 - abar): `xt = a x0 + s noise` and `v = a noise - s x0` (Salimans & Ho 2022,
arXiv 2202.00512, section 4 and appendix D).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["epsilon", "v_prediction", "sample"]


def _coefficients(abar: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    shape = (-1,) + (1,) * (like.ndim - 1)
    return abar.sqrt().to(like.dtype).view(shape), (1 - abar).sqrt().to(like.dtype).view(shape)


def q_sample(x0: Tensor, noise: Tensor, abar: Tensor) -> Tensor:
    """A draw of q(x_t | x_0) from the given standard normal noise (Ho et al. 2020, equation 4)."""
    a, s = _coefficients(abar, x0)
    return a * x0 + s * noise


def target(prediction: Prediction, x0: Tensor, noise: Tensor, abar: Tensor) -> Tensor:
    """What a perfect network would answer."""
    if prediction == "epsilon":
        return noise
    if prediction == "sample":
        return x0
    a, s = _coefficients(abar, x0)
    return a * noise - s * x0


def to_x0(prediction: Prediction, output: Tensor, xt: Tensor, abar: Tensor) -> Tensor:
    """The clean picture that an output implies."""
    a, s = _coefficients(abar, xt)
    if prediction == "epsilon":
        return (xt - s * output) / a
    if prediction == "sample":
        return output
    return a * xt - s * output


def to_epsilon(prediction: Prediction, output: Tensor, xt: Tensor, abar: Tensor) -> Tensor:
    """The noise that an output implies."""
    a, s = _coefficients(abar, xt)
    if prediction == "epsilon":
        return output
    if prediction == "sample":
        return (xt - a * output) / s
    return s * xt + a * output


def to_v(prediction: Prediction, output: Tensor, xt: Tensor, abar: Tensor) -> Tensor:
    """The velocity that an output implies."""
    if prediction == "v_prediction":
        return output
    a, s = _coefficients(abar, xt)
    return a * to_epsilon(prediction, output, xt, abar) - s * to_x0(prediction, output, xt, abar)


def min_snr_weight(prediction: Prediction, abar: Tensor, gamma: float) -> Tensor:
    """The weight (N,) of each row's squared error (Hang et al. 2023, arXiv 2303.09556, section 3.4).

    min(SNR, gamma) on the error of x0; divided by SNR for epsilon and by SNR + 1 for v, whose squared errors are the
    error of x0 times those.
    """
    snr = abar / (1 - abar)
    clipped = snr.clamp(max=gamma)
    if prediction == "epsilon":
        return clipped / snr
    if prediction == "sample":
        return clipped
    return clipped / (snr + 1)


def loss(
    output: Tensor, x0: Tensor, noise: Tensor, abar: Tensor, *, prediction: Prediction, min_snr_gamma: float | None
) -> Tensor:
    """Mean squared error in float32, a scalar: the simple loss of Ho et al. 2020, equation 14, or min-SNR weighted."""
    error = (output.float() - target(prediction, x0, noise, abar).float()).square().flatten(1).mean(dim=1)
    if min_snr_gamma is not None:
        error = error * min_snr_weight(prediction, abar, min_snr_gamma).to(error.dtype)
    return error.mean()


def table(alphas_cumprod: object, device: torch.device | str) -> Tensor:
    """alpha-bar as the float64 (T,) tensor that rows are looked up in."""
    return torch.as_tensor(alphas_cumprod, dtype=torch.float64, device=device)
