"""What can have led to what: CLEVRER's causal graph, from collisions as they are perceived."""

from __future__ import annotations

import torch
from torch import Tensor


def pair_ends(slots: int) -> tuple[Tensor, Tensor]:
    """Both slots (S (S - 1) / 2,) of each pair."""
    first, second = torch.triu_indices(slots, slots, offset=1)
    return first, second


def nodes(slots: int) -> tuple[Tensor, Tensor]:
    """What can happen to whom: both slots (N,) of each node, first twice the same for each slot, then of all pairs."""
    alone, (first, second) = torch.arange(slots), pair_ends(slots)
    return torch.cat([alone, first]), torch.cat([alone, second])


def causal_past(collisions: Tensor) -> Tensor:
    """What led to each event, in the graph of ``envs.clevrer.events.CausalGraph``: whoever collides takes on the past.

    In each step two slots that collide take on each other's past, the two themselves, and their collision. Of
    probabilities the largest counts, so that of certain collisions in different steps the answer is exact.

    Args:
        collisions: (V, C, S, S) probabilities in each step, symmetric, 0 of a slot with itself.

    Returns:
        (V, N, N), by the ``nodes``: rows are events, a slot's exit or a pair's collision; columns are what led to it, a
        slot that took part in an earlier event, or a pair's earlier collision.
    """
    videos, _, slots, _ = collisions.shape
    first, second = (ends.to(collisions.device) for ends in nodes(slots))
    one, other = first[slots:], second[slots:]
    slot = torch.arange(slots, device=collisions.device)
    within = (slot[:, None, None] == first) | (slot[None, :, None] == first)
    within = within & ((slot[:, None, None] == second) | (slot[None, :, None] == second))  # (S, S, N)
    past = collisions.new_zeros(videos, slots, len(first))
    led = collisions.new_zeros(videos, len(one), len(first))
    for now in collisions.unbind(1):
        before = torch.maximum(past[:, one], past[:, other])
        led = torch.maximum(led, now[:, one, other, None] * before)
        taken = now[..., None] * torch.maximum(past[:, None], within.to(past))
        past = torch.maximum(past, taken.amax(2))
    return torch.cat([past, led], dim=1)
