"""Which slot is which: exact one-to-one matching of two sets of slots, batched, on the device.

Up to ``ENUMERATED`` slots every permutation is tried; above that a dynamic programme over subsets (Held and Karp
1962, for assignment) does ``S 2^(S-1)`` additions per pair of sets in place of ``S S!``. Both are exact, without a loop
over the batch and without reading anything back to the host. Letters: S slots, D latent width.
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

ENUMERATED = 5  # measured: up to here permutations are faster at the batch sizes of a planner, above it subsets are
LARGEST = 12  # 24,576 additions per pair of sets; each slot more doubles them, and the memory


def match_slots(source: Tensor, target: Tensor) -> Tensor:
    """For each target slot the source slot that stands for it, at the lowest total squared error.

    Args:
        source: (..., S, D).
        target: (..., S, D), broadcast against ``source``.

    Returns:
        (..., S) int64 permutation: ``source.take_along_dim(permutation.unsqueeze(-1), -2)`` is in the target's
        order. Ties are resolved the same way every time; without ties nothing depends on the batch.

    Raises:
        ValueError: shapes do not fit, or more than 12 slots.
    """
    with torch.no_grad():
        return best_assignment(pairwise_errors(source, target))


def pairwise_errors(source: Tensor, target: Tensor) -> Tensor:
    """Mean squared error (..., S, S) of each source slot (row) to each target slot (column).

    Raises:
        ValueError: the two do not hold the same slots x width, or a leading dimension does not broadcast.
    """
    if source.ndim < 2 or target.ndim < 2 or source.shape[-2:] != target.shape[-2:]:
        raise ValueError(
            f"got source {tuple(source.shape)} and target {tuple(target.shape)}; expected both (..., S, D) "
            f"with the same number of slots and width"
        )
    # Differences, not |a|^2 + |b|^2 - 2ab: close to the goal that cancels, and its rounding would decide the match.
    columns = [(source - target[..., slot : slot + 1, :]).square().mean(-1) for slot in range(target.shape[-2])]
    return torch.stack(columns, dim=-1)


def best_assignment(costs: Tensor) -> Tensor:
    """Exact linear sum assignment of a batch of square cost matrices.

    Args:
        costs: (..., S, S), rows are sources, columns targets, 1 <= S <= 12.

    Returns:
        (..., S) int64, for each column its row.

    Raises:
        ValueError: matrices not square, or S outside 1 to 12.
    """
    if costs.ndim < 2 or costs.shape[-1] != costs.shape[-2]:
        raise ValueError(f"got costs of shape {tuple(costs.shape)}; expected square matrices (..., S, S)")
    n_slots = costs.shape[-1]
    if not 1 <= n_slots <= LARGEST:
        raise ValueError(
            f"got {n_slots} slots; exact matching takes 1 to {LARGEST}: use fewer slots, or compare slots in order"
        )
    if n_slots <= ENUMERATED:
        return _try_permutations(costs)
    return _grow_subsets(costs)


def _try_permutations(costs: Tensor) -> Tensor:
    permutations = _permutations(costs.shape[-1], costs.device)
    total = costs[..., 0].index_select(-1, permutations[:, 0])
    for column in range(1, costs.shape[-1]):
        total = total + costs[..., column].index_select(-1, permutations[:, column])
    return permutations[total.argmin(-1)]


def _grow_subsets(costs: Tensor) -> Tensor:
    """Lowest cost of giving the first k columns to each subset of k rows, from that of the subsets of k - 1."""
    levels = _subset_levels(costs.shape[-1], costs.device)
    lowest = costs.new_zeros(*costs.shape[:-2], 1)
    last_member: list[Tensor] = []
    for column, level in enumerate(levels):
        total = lowest[..., level.without] + costs[..., column][..., level.members]
        lowest, choice = total.min(-1)
        last_member.append(choice)
    subset = torch.zeros_like(last_member[-1][..., 0])
    rows: list[Tensor] = []
    for level, choice in zip(reversed(levels), reversed(last_member), strict=True):
        member = choice.take_along_dim(subset.unsqueeze(-1), dim=-1).squeeze(-1)
        rows.append(level.members[subset, member])
        subset = level.without[subset, member]
    return torch.stack(rows[::-1], dim=-1)


class _Level(NamedTuple):
    """The subsets of k rows, in lexicographic order.

    Attributes:
        members: (subsets, k) row numbers.
        without: (subsets, k) index, among the subsets of k - 1 rows, of the subset without that member.
    """

    members: Tensor
    without: Tensor


@cache
def _permutations(n_slots: int, device: torch.device) -> Tensor:
    return torch.tensor(list(itertools.permutations(range(n_slots))), device=device)


@cache
def _subset_levels(n_slots: int, device: torch.device) -> tuple[_Level, ...]:
    levels = []
    smaller: dict[tuple[int, ...], int] = {(): 0}
    for size in range(1, n_slots + 1):
        subsets = list(itertools.combinations(range(n_slots), size))
        without = [[smaller[subset[:k] + subset[k + 1 :]] for k in range(size)] for subset in subsets]
        levels.append(_Level(torch.tensor(subsets, device=device), torch.tensor(without, device=device)))
        smaller = {subset: index for index, subset in enumerate(subsets)}
    return tuple(levels)
