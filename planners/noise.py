"""The noise that candidates are made of: drawn per environment, correlated over time, kept within bounds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, reduce

import torch
from torch import Tensor


def draw_normal(generators: Sequence[torch.Generator | None], shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Standard normal noise (B, *shape) with the dtype and on the device of ``like``, drawn per environment.

    An environment without a generator gets zeros.
    """
    # From pinned memory the copy runs while the host already draws for the next iteration.
    noise = torch.zeros((len(generators), *shape), dtype=like.dtype, pin_memory=like.device.type == "cuda")
    for row, generator in zip(noise, generators, strict=True):
        if generator is not None:
            row.normal_(generator=generator)
    return noise.to(like.device, non_blocking=True)


def colour(noise: Tensor, beta: float) -> Tensor:
    """Correlate standard normal noise (..., H, K) over its H steps; every number stays standard normal.

    The power at frequency f falls as ``1 / f^beta``: 0 leaves white noise, at 2 a plan drifts like a random walk. The
    mean over the steps is as strong as the slowest wave (Timmer and Koenig 1995, as in Pinneri et al. 2020).
    """
    matrix = _colouring(noise.shape[-2], beta, noise.dtype, noise.device)
    parts = (noise[..., step : step + 1, :] * matrix[:, step : step + 1] for step in range(noise.shape[-2]))
    coloured: Tensor = reduce(torch.add, parts)
    return coloured


@cache
def _colouring(horizon: int, beta: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(H, H): scales the frequencies of H steps. A fixed matrix, so that no transform depends on the batch."""
    frequency = torch.fft.rfftfreq(horizon, dtype=torch.float64).clamp(min=1 / horizon)
    waves = torch.fft.rfft(torch.eye(horizon, dtype=torch.float64))
    matrix: Tensor = torch.fft.irfft(waves * frequency ** (-beta / 2), n=horizon)
    matrix /= matrix[0].norm()
    return matrix.to(device, dtype)


def truncate(noise: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Standard normal noise as noise of the same quantiles from a standard normal distribution cut to the bounds.

    Args:
        noise: (B, N, H, K).
        low: smallest allowed values, broadcast against ``noise``, -inf where there is no bound.
        high: largest allowed values, above ``low``.
    """
    # Mirrored where all that is allowed is above the mean, since quantiles near 1 are all rounded to it.
    upper = low > 0
    sign = torch.where(upper, -1.0, 1.0).double()
    first, last = torch.where(upper, -high, low).double(), torch.where(upper, -low, high).double()
    below, above = torch.special.log_ndtr(first).exp(), torch.special.log_ndtr(last).exp()
    quantile = below + (above - below) * torch.special.ndtr(sign * noise.double())
    # Quantiles of 0 are farther out than numbers reach: what is allowed nearest to the mean is all that counts there.
    truncated: Tensor = sign * torch.where(above > 0, torch.special.ndtri(quantile), last)
    return truncated.to(noise.dtype).clamp(low, high)
