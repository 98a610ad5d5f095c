"""Normalisation that ships with the model: fitted on training episodes only, saved beside the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cjepa_agent.latent import Latent

SCALES = ("slot_scale", "proprio_std", "action_std")  # buffers that are positive
STILL = 1e-6  # standard deviation, in units of the data, of what counts as constant


class Processor(nn.Module):
    """Maps raw slots, proprioception and action blocks to the numbers the predictor works on.

    Slots are shifted per number but scaled by one factor per group of numbers (position, appearance):
    standardising each number would blow the noise of static objects up to the size of the signal, and both loss
    and planning cost would then measure noise.

    Args:
        n_slots, slot_dim: S and D.
        proprio_dim: P.
        action_dim: A, numbers in an action block.
    """

    def __init__(self, n_slots: int, slot_dim: int, proprio_dim: int, action_dim: int) -> None:
        super().__init__()
        self.register_buffer("slot_mean", torch.zeros(n_slots, slot_dim))
        self.register_buffer("slot_scale", torch.ones(slot_dim))
        self.register_buffer("proprio_mean", torch.zeros(proprio_dim))
        self.register_buffer("proprio_std", torch.ones(proprio_dim))
        self.register_buffer("action_mean", torch.zeros(action_dim))
        self.register_buffer("action_std", torch.ones(action_dim))

    slot_mean: Tensor
    slot_scale: Tensor
    proprio_mean: Tensor
    proprio_std: Tensor
    action_mean: Tensor
    action_std: Tensor

    @torch.no_grad()
    def fit(
        self,
        slots: Tensor,
        later: Tensor,
        proprio: Tensor,
        blocks: Tensor,
        position_dim: int,
        slot: int | slice | None,
        raw_slots: bool = False,
    ) -> None:
        """Fit on training data.

        Args:
            slots: (M, S, D) raw slots.
            later: (M, S, D) raw slots one planning horizon later.
            proprio: (M, P) raw.
            blocks: (M, A) raw action blocks.
            position_dim: numbers of a slot that belong to the position group; the rest, or all with 0, is appearance.
            slot: what sets the scales, the block's slot or all patches: over one horizon its mean squared change
                becomes one, shared equally by the groups. A typical plan then counts as much in place as in rotation,
                and about as much as the change of proprioception. None where any object may be in any slot: mean and
                scales are then those of all slots together, whose variance, not change, becomes one. Change would be
                made of the few moments at which an object enters or leaves.
            raw_slots: leave slots as they are.

        Raises:
            ValueError: if anything is not finite.
        """
        for name, value in (("slots", slots), ("later slots", later), ("proprio", proprio), ("actions", blocks)):
            if not torch.isfinite(value).all():
                raise ValueError(f"the training {name} contain NaN or infinite values; clean the dataset first")
        for centre, deviation, values in (
            (self.proprio_mean, self.proprio_std, proprio),
            (self.action_mean, self.action_std, blocks),
        ):
            if values.shape[1]:
                centre.copy_(values.mean(0))
                # Of what never changed nothing tells the scale; a tiny one would blow up any change seen later.
                spread = values.std(0, correction=min(1, len(values) - 1))
                deviation.copy_(torch.where(spread > STILL, spread, 1.0))
        if raw_slots:
            return
        if slot is None:
            mean, spread = slots.mean((0, 1)), slots.flatten(0, 1).var(0)
        else:
            mean, spread = slots.mean(0), (later - slots)[:, slot].square().flatten(0, -2).mean(0)
        scale = torch.empty_like(self.slot_scale)
        groups = [slice(0, position_dim), slice(position_dim, None)] if position_dim else [slice(None)]
        for group in groups:
            scale[group] = (len(spread) / len(groups) / spread[group].sum().clamp(min=1e-8)).sqrt()
        self.slot_mean.copy_(mean)
        self.slot_scale.copy_(scale)

    def state(self, slots: Tensor, proprio: Tensor) -> Latent:
        """Raw slots (..., S, D) and proprioception (..., P) to a latent."""
        return Latent((slots - self.slot_mean) * self.slot_scale, (proprio - self.proprio_mean) / self.proprio_std)

    def raw_slots(self, slots: Tensor) -> Tensor:
        """Inverse of ``state`` for slots (..., S, D)."""
        return slots / self.slot_scale + self.slot_mean

    def action(self, blocks: Tensor) -> Tensor:
        """Action blocks (..., A) in environment units to predictor inputs."""
        return (blocks - self.action_mean) / self.action_std
