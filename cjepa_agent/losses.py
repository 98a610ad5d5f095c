"""Training objectives: C-JEPA's, to recover hidden history and the future (equation 5), and plain forecasting."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cjepa_agent.latent import Latent


class LossTerms(NamedTuple):
    """Scalar terms; ``total`` is what is minimised."""

    total: Tensor
    history: Tensor
    future: Tensor
    proprio: Tensor


def cjepa_loss(
    prediction: Latent, target: Latent, hidden: Tensor, proprio_weight: float = 1.0, saturation: float = 0.0
) -> LossTerms:
    """``L_history + L_future``, mean squared errors: per sample the mean over cells and the numbers of a cell.

    A batch is then the mean of its samples, however many cells each hides, and so of its parts on several devices.

    Args:
        prediction: slots (B, T + F, S, D), proprio (B, T + F, P).
        target: the same shapes; no gradient flows into it.
        hidden: (B, T, S) bool, history cells that were hidden.
        proprio_weight: weight of the future proprioception's mean squared error.
        saturation: see ``saturated``.

    Returns:
        ``history``: mean over each sample's hidden history cells, 0 without any; ``future``: over future object
        cells; ``proprio``: over future proprioception, 0 without any.
    """
    frames = hidden.shape[1]
    slot_error = saturated((prediction.slots - target.slots.detach()).square().mean(-1), saturation)
    cells = hidden.sum((1, 2)).clamp(min=1)
    history = ((slot_error[:, :frames] * hidden).sum((1, 2)) / cells).mean()
    future = slot_error[:, frames:].mean()
    proprio = mean_square((prediction.proprio - target.proprio.detach())[:, frames:])
    return LossTerms(history + future + proprio_weight * proprio, history, future, proprio)


def forecast_loss(
    prediction: Latent, target: Latent, proprio_weight: float = 1.0, saturation: float = 0.0
) -> LossTerms:
    """Mean squared error of predicted frames, for predictors from which nothing is hidden.

    Args:
        prediction: slots (B, K, S, D), proprio (B, K, P) of the last K frames of the target.
        target: slots (B, T + F, S, D), proprio (B, T + F, P); no gradient flows into it.
        proprio_weight: weight of proprioception's mean squared error.
        saturation: see ``saturated``.

    Returns:
        ``history``: 0; ``future``: over all predicted object cells; ``proprio``: over predicted proprioception.
    """
    frames = prediction.slots.shape[1]
    future = saturated((prediction.slots - target.slots.detach()[:, -frames:]).square().mean(-1), saturation).mean()
    proprio = mean_square(prediction.proprio - target.proprio.detach()[:, -frames:])
    return LossTerms(future + proprio_weight * proprio, torch.zeros_like(future), future, proprio)


def saturated(error: Tensor, scale: float) -> Tensor:
    """Cauchy's robust loss ``scale log(1 + error / scale)`` of squared errors; the errors themselves where scale is 0.

    Few large errors, as of objects that leave at a time that nobody can tell, then count less (Barron 2019, arXiv
    1701.03077). So do collisions: with a small scale they are not learned.
    """
    return scale * (error / scale).log1p() if scale else error


def mean_square(error: Tensor) -> Tensor:
    """Mean of the squares; 0 where there is nothing, as in the proprioception of a video."""
    return error.square().mean() if error.numel() else error.new_zeros(())
