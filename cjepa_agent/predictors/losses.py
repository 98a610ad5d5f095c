"""Training objectives: C-JEPA's, to recover hidden history and the future (equation 5), and plain forecasting."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cjepa_agent.latent import Latent


class LossSettings(NamedTuple):
    """What counts how much; by default as in C-JEPA's paper.

    Attributes:
        proprio_weight: of proprioception's mean squared error.
        history_weight: of hidden cells of the history.
        hidden_future_weight: of a future cell of an object hidden throughout the history after its first frame, where
            those of others count 1.
        saturation: see ``saturated``.
    """

    proprio_weight: float = 1.0
    history_weight: float = 1.0
    hidden_future_weight: float = 1.0
    saturation: float = 0.0


PUBLISHED = LossSettings()


class LossTerms(NamedTuple):
    """Scalar terms; ``total`` is what is minimised."""

    total: Tensor
    history: Tensor
    future: Tensor
    proprio: Tensor


def cjepa_loss(prediction: Latent, target: Latent, hidden: Tensor, settings: LossSettings = PUBLISHED) -> LossTerms:
    """``L_history + L_future``, mean squared errors: per sample the mean over cells and the numbers of a cell.

    A batch is then the mean of its samples, however many cells each hides, and so of its parts on several devices.

    Args:
        prediction: slots (B, T + F, S, D), proprio (B, T + F, P).
        target: the same shapes; no gradient flows into it.
        hidden: (B, T, S) bool, history cells that were hidden.
        settings: weights of terms and cells.

    Returns:
        ``history``: mean over each sample's hidden history cells, 0 without any; ``future``: weighted mean over each
        sample's future object cells; ``proprio``: over future proprioception, 0 without any.
    """
    frames = hidden.shape[1]
    slot_error = saturated((prediction.slots - target.slots.detach()).square().mean(-1), settings.saturation)
    history = _mean(slot_error[:, :frames], hidden.float())
    unseen = hidden_throughout(hidden)
    weight = torch.ones_like(slot_error[:, 0]).masked_fill(unseen, settings.hidden_future_weight)
    future = _mean(slot_error[:, frames:], weight.unsqueeze(1).expand_as(slot_error[:, frames:]))
    proprio = mean_square((prediction.proprio - target.proprio.detach())[:, frames:])
    total = settings.history_weight * history + future + settings.proprio_weight * proprio
    return LossTerms(total, history, future, proprio)


def hidden_throughout(hidden: Tensor) -> Tensor:
    """Which objects, (B, S), are hidden, (B, T, S), in all of the history after its first frame."""
    return hidden.any(1) & hidden[:, 1:].all(1)


def _mean(error: Tensor, weight: Tensor) -> Tensor:
    """Mean over samples of the weighted means (B, T, S) of each, 0 where all weights are 0."""
    total = weight.sum((1, 2))
    return ((error * weight).sum((1, 2)) / total.masked_fill(total == 0, 1)).mean()


def forecast_loss(prediction: Latent, target: Latent, settings: LossSettings = PUBLISHED) -> LossTerms:
    """Mean squared error of predicted frames, for predictors from which nothing is hidden.

    Args:
        prediction: slots (B, K, S, D), proprio (B, K, P) of the last K frames of the target.
        target: slots (B, T + F, S, D), proprio (B, T + F, P); no gradient flows into it.
        settings: weight of proprioception, and saturation; nothing is hidden.

    Returns:
        ``history``: 0; ``future``: over all predicted object cells; ``proprio``: over predicted proprioception.
    """
    frames = prediction.slots.shape[1]
    slot_error = (prediction.slots - target.slots.detach()[:, -frames:]).square().mean(-1)
    future = saturated(slot_error, settings.saturation).mean()
    proprio = mean_square(prediction.proprio - target.proprio.detach()[:, -frames:])
    return LossTerms(future + settings.proprio_weight * proprio, torch.zeros_like(future), future, proprio)


def saturated(error: Tensor, scale: float) -> Tensor:
    """Cauchy's robust loss ``scale log(1 + error / scale)`` of squared errors; the errors themselves where scale is 0.

    Few large errors, as of objects that leave at a time that nobody can tell, then count less (Barron 2019, arXiv
    1701.03077). So do collisions: with a small scale they are not learned.
    """
    return scale * (error / scale).log1p() if scale else error


def mean_square(error: Tensor) -> Tensor:
    """Mean of the squares; 0 where there is nothing, as in the proprioception of a video."""
    return error.square().mean() if error.numel() else error.new_zeros(())
