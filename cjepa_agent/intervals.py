"""Shares, means and paired differences with 95 % intervals, and how tables write them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z_95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
RESAMPLES, PAIRED_RESAMPLES = 2000, 10_000
DRAWN_AT_ONCE = 10_000_000  # scenes of resamples, 80 MB


def wilson_interval(successes: float, n: float, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a success probability, in [0, 1]; counts may be effective ones, with fractions.

    Raises:
        ValueError: not 0 <= successes <= n with n >= 1.
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"got {successes} successes of {n}; expected 0 to n, and n at least 1")
    rate, spread = successes / n, z * z / n
    centre = (rate + spread / 2) / (1 + spread)
    half = math.sqrt(rate * (1 - rate) * spread + spread * spread / 4) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def share_of(hits: Sequence[tuple[int, bool]]) -> dict[str, float]:
    """Percentage of hits, each in a scene, with a 95 % interval that knows that hits of one scene depend on each other.

    It is Wilson's interval of as many hits as tell as much if they were independent: their number divided by the design
    effect, the variance of the share by differences between scenes (Taylor linearisation) over that of independent
    hits, taken as 1 where it is less (Kish, Survey Sampling, 1965; with Wilson's interval, Dean & Pagano 2015). One
    scene tells no such effect.
    """
    scenes, right = (np.array(part) for part in zip(*hits, strict=True))
    share, n = float(right.mean()), len(right)
    totals = np.bincount(np.unique(scenes, return_inverse=True)[1], right - share)
    variance = float((totals**2).sum()) / n**2 * len(totals) / max(1, len(totals) - 1)
    effect = max(1.0, variance * n / (share * (1 - share))) if 0 < share < 1 else 1.0
    low, high = wilson_interval(share * n / effect, n / effect)
    return {"mean": 100 * share, "low": 100 * low, "high": 100 * high, "number": n}


def interval_text(value: Mapping[str, float] | None, digits: int) -> str:
    """A ``mean`` with ``low`` and ``high`` end of its interval, as tables have it; empty where there is none."""
    if not value:
        return ""
    return f"{value['mean']:.{digits}f} ({value['low']:.{digits}f} to {value['high']:.{digits}f})"


def scene_mean(values: Sequence[tuple[int, float]], rng: np.random.Generator) -> dict[str, float]:
    """Mean of values, each of a scene, with an interval of 95 % from scenes drawn with replacement; empty of none."""
    if not values:
        return {}
    scenes, each = zip(*values, strict=True)
    return _bootstrapped(np.array(each), scenes, rng, RESAMPLES)


def paired_difference(own: ArrayLike, other: ArrayLike, seed: int, scenes: ArrayLike | None = None) -> dict[str, float]:
    """The difference of two shares of right answers to the same items, in points, with a bootstrap 95 % interval.

    Args:
        own: (items,) or (seeds, items) whether each answer is right, or how often; items are drawn, seeds are not.
        other: likewise.
        seed: of what is drawn, the same whatever else is compared.
        scenes: (items,) the scene of each item, for scenes to be drawn with all their items; by default items are.
    """
    difference = 100 * (np.atleast_2d(own).mean(0) - np.atleast_2d(other).mean(0))
    drawn = np.arange(len(difference)) if scenes is None else scenes
    return _bootstrapped(difference, drawn, np.random.default_rng(seed), PAIRED_RESAMPLES)


def _bootstrapped(
    values: NDArray[np.float64], scenes: ArrayLike, rng: np.random.Generator, resamples: int
) -> dict[str, float]:
    """Mean of values with an interval of 95 % from scenes drawn with replacement."""
    scene = np.unique(scenes, return_inverse=True)[1]
    sums, counts = np.bincount(scene, values), np.bincount(scene)
    n = len(sums)
    means = []
    for part in np.array_split(np.arange(resamples), 1 + resamples * n // DRAWN_AT_ONCE):
        drawn = rng.integers(0, n, (len(part), n))
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return {"mean": float(sums.sum() / counts.sum()), "low": float(low), "high": float(high), "number": len(values)}


def points_text(value: Mapping[str, float]) -> str:
    """A paired difference as tables have it."""
    return f"{value['mean']:+.1f} ({value['low']:+.1f} to {value['high']:+.1f})"
