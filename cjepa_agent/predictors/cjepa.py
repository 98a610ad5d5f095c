"""The masked predictor: a bidirectional transformer over (time, token) cells.

Tokens of a time step are ``S`` object slots and, where somebody acts, proprioception and the action block taken from
there. Cells that are visible enter as their latent; hidden cells enter as a mask token and a linear map of the object's
first frame, the identity anchor. All cells carry a time embedding (C-JEPA section 3).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cjepa_agent.latent import Latent
from cjepa_agent.predictors.base import Predictor, TransformerConfig, zero_linear


@dataclass(frozen=True)
class PredictorConfig(TransformerConfig):
    """Architecture of C-JEPA's predictor.

    Attributes:
        future: most future frames predicted in one call, F.
        motion: every cell also sees the last visible latent of its object and how it changed since the frame before,
            so that a single object's course needs no attention; nothing that is hidden is told by it. Ours, not the
            paper's.
        auxiliary: ``tokens`` gives proprioception and action tokens of their own; ``concat`` adds them to every
            slot instead (the paper's ablation).
        kind: ``cjepa``.
    """

    title: ClassVar[str] = "C-JEPA"
    future: int = 1
    motion: bool = False
    auxiliary: Literal["tokens", "concat"] = "tokens"
    kind: Literal["cjepa"] = "cjepa"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.future < 1:
            raise ValueError(f"predictor.future must be positive, got {self.future}")
        if self.auxiliary not in ("tokens", "concat"):
            raise ValueError(f"predictor.auxiliary must be tokens or concat, got {self.auxiliary!r}")

    def build(self, n_slots: int, slot_dim: int, proprio_dim: int, action_dim: int) -> MaskedPredictor:
        """The predictor with random weights."""
        return MaskedPredictor(self, n_slots, slot_dim, proprio_dim, action_dim)


VECTOR = 16  # float32 numbers that a CPU's widest registers hold


def attend(query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None = None) -> Tensor:
    """Attention over (B, heads, L, width per head), to keys that are ``seen``, (B, 1, 1, L) or (L, L), or to all."""
    # On a CPU the fused kernel suits long sequences. For the dozen tokens of a plan explicit products take half as
    # long, and in bfloat16 a fifth.
    short = key.shape[-2] < VECTOR
    if query.device.type == "cpu" and (query.dtype == torch.bfloat16 or (short and not query.requires_grad)):
        scores = ((query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)).float()
        if seen is not None:
            scores = scores.masked_fill(~seen, -torch.inf)
        weights = _short_softmax(scores) if short else scores.softmax(-1)
        mixed: Tensor = weights.to(value.dtype) @ value
        return mixed
    return F.scaled_dot_product_attention(query, key, value, attn_mask=seen)


def _short_softmax(scores: Tensor) -> Tensor:
    """Softmax over the last axis, a tenth of the time where it is shorter than a vector register."""
    weights = (scores - scores.detach().amax(-1, keepdim=True)).exp()
    return weights / weights.sum(-1, keepdim=True)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, mlp: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key_value, self.out = (
            nn.Linear(width, width),
            nn.Linear(width, 2 * width),
            nn.Linear(width, width),
        )
        self.mlp = nn.Sequential(nn.Linear(width, mlp), nn.GELU("tanh"), nn.Linear(mlp, width))

    def forward(self, x: Tensor, read: int, seen: Tensor | None = None, others: Tensor | None = None) -> Tensor:
        """Update the last ``read`` of the cells (B, L, width): (B, read, width).

        They look at the M ``others``, of which keys and values (B, M, 2 width) are given, and at all L cells; or at
        those of both that are ``seen``, (B, M + L).
        """
        inputs = self.norm_attention(x)
        x = x[:, -read:]
        query = self.query(inputs[:, -read:]).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key_value = self.key_value(inputs)
        if others is not None:
            key_value = torch.cat([others, key_value], dim=1)
        key, value = key_value.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = attend(query, key, value, None if seen is None else seen[:, None, None])
        x = x + self._drop(self.out(mixed.transpose(1, 2).flatten(2)))
        return x + self._drop(self.mlp(self.norm_mlp(x)))

    def keys_values(self, x: Tensor) -> Tensor:
        """What cells (B, L, width) hold for others to look at, (B, L, 2 width)."""
        held: Tensor = self.key_value(self.norm_attention(x))
        return held

    def attention(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        """Weights (B, heads, L, L) with which cells (B, L, width) look at those ``seen``, (B, L), queries first."""
        inputs = self.norm_attention(x)
        query = self.query(inputs).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key = self.key_value(inputs).chunk(2, dim=-1)[0].unflatten(-1, (self.heads, -1)).transpose(1, 2)
        scores: Tensor = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        return (scores if seen is None else scores.masked_fill(~seen[:, None, None], -torch.inf)).softmax(-1)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class MaskedPredictor(Predictor):
    """Recovers hidden history cells and all future cells.

    Args:
        config: architecture.
        n_slots, slot_dim: S and D of the latents.
        proprio_dim: P, 0 for videos, in which nobody acts.
        action_dim: A, numbers in one action block, 0 likewise.

    Raises:
        ValueError: only one of P and A is 0.
    """

    grows = False  # a rollout's history keeps the length that it starts with
    orderless = True
    masked = True
    blocks: nn.ModuleList

    def __init__(self, config: PredictorConfig, n_slots: int, slot_dim: int, proprio_dim: int, action_dim: int) -> None:
        super().__init__(config.history, n_slots, config.future)
        if (proprio_dim == 0) != (action_dim == 0):
            raise ValueError(
                f"proprioception and actions come together or not at all, got P={proprio_dim}, A={action_dim}"
            )
        self.config, self.acts, width = config, action_dim > 0, config.width
        self.time = nn.Parameter(torch.randn(config.history + config.future, width) * 0.02)
        self.embed_slot = nn.Linear(slot_dim, width)
        if self.acts:
            self.embed_action, self.embed_proprio = nn.Linear(action_dim, width), nn.Linear(proprio_dim, width)
        self.anchor_slot, self.mask_slot = nn.Linear(slot_dim, width), nn.Parameter(torch.zeros(width))
        if config.motion:
            self.embed_motion = nn.Linear(2 * slot_dim, width)
        if self.acts:
            self.anchor_proprio, self.mask_proprio = nn.Linear(proprio_dim, width), nn.Parameter(torch.zeros(width))
        sizes = config.width, config.heads, config.mlp, config.dropout
        self.blocks = nn.ModuleList(Block(*sizes) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self.head_slot = zero_linear(width, slot_dim)
        if self.acts:
            self.head_proprio = zero_linear(width, proprio_dim)

    @property
    def frame_tokens(self) -> int:
        """S, and those of proprioception and action if they have their own."""
        return self.n_slots + (2 if self.acts and self.config.auxiliary == "tokens" else 0)

    def forward(self, history: Latent, actions: Tensor, hidden: Tensor | None = None, future: int = 1) -> Latent:
        """Predict the cells of history and future.

        Args:
            history: slots (B, T, S, D) and proprio (B, T, P), 1 <= T <= config.history. Slots have no order, so that
                objects can be left out.
            actions: (B, T + future - 1, A) normalised action blocks, the t-th taken at frame t.
            hidden: (B, T, S) bool, history cells not shown; None at test time. When given, predictions of
                history cells are returned too.
            future: F, frames to predict.

        Returns:
            Predictions for frames 0..T+F-1 if ``hidden`` is given, else for the F future frames only:
            slots (B, frames, S, D) and proprio (B, frames, P). Visible cells' predictions have no target.

        Raises:
            ValueError: shapes that do not fit the configuration.
        """
        batch, frames, objects = history.slots.shape[:3]
        x, state_cells = self._cells(history, actions, hidden, future)
        read_frames = future if hidden is None else frames + future
        read = read_frames * state_cells
        for block in self.blocks[:-1]:
            x = block(x, x.shape[1])
        x = self.norm(self.blocks[-1](x, read)).view(batch, read_frames, -1, self.config.width)
        prediction = Latent(self.head_slot(x[:, :, :objects]).float(), self._read_proprio(x))
        return self._add_base(prediction, history, hidden, read_frames, future)

    @torch.no_grad()
    def attention(self, history: Latent, actions: Tensor, hidden: Tensor | None = None, future: int = 1) -> Tensor:
        """How much each object looks at each other one in the future frames; arguments are those of ``forward``.

        Returns:
            (B, layers, heads, F, S, S), queries first: weights summed over the frames of what is looked at, history
            and future. They add up to 1 over what is looked at, less what goes to proprioception and actions.
        """
        frames, objects = history.slots.shape[1:3]
        x, state_cells = self._cells(history, actions, hidden, future)
        layers = []
        for block in cast(Iterable[Block], self.blocks):
            weights = block.attention(x)[..., -(frames + future) * state_cells :].unflatten(-1, (-1, state_cells))
            looked_at = weights[:, :, -future * state_cells :, :, :objects].sum(3)
            layers.append(looked_at.unflatten(2, (future, state_cells))[:, :, :, :objects])
            x = block(x, x.shape[1])
        return torch.stack(layers, dim=1)

    def _cells(self, history: Latent, actions: Tensor, hidden: Tensor | None, future: int) -> tuple[Tensor, int]:
        """Embedded cells (B, L, width), those of the state last, frame by frame; and how many of a frame these are."""
        frames = history.slots.shape[1]
        self._check_history(history, future)
        self._check_actions(history, actions, future)
        # Short histories end at the same present as long ones, so that "now" has one time embedding.
        first = self.config.history - frames
        time = self.time[first : first + frames + future]
        state = self._slot_cells(history.slots, hidden, time, future)
        extra: Tensor | None = None
        if self.acts:
            proprio = self._proprio_cells(history.proprio, time, future)
            action = self.embed_action(actions) + time[: frames + future - 1]
            if self.config.auxiliary == "concat":
                padded = F.pad(action, (0, 0, 0, 1))
                state = state + (proprio + padded).unsqueeze(2)
            else:
                state, extra = torch.cat([state, proprio.unsqueeze(2)], dim=2), action
        cells = state.flatten(1, 2) if extra is None else torch.cat([extra, state.flatten(1, 2)], dim=1)
        return cells, state.shape[2]

    def _read_proprio(self, x: Tensor) -> Tensor:
        """Proprioception (B, frames, P) of cells (B, frames, S or S + 1, width)."""
        if not self.acts:
            return x.new_empty(*x.shape[:2], 0)
        pooled = x.mean(2) if self.config.auxiliary == "concat" else x[:, :, -1]
        proprio: Tensor = self.head_proprio(pooled).float()
        return proprio

    def _slot_cells(self, history: Tensor, hidden: Tensor | None, time: Tensor, future: int) -> Tensor:
        """Embedded slots (B, T + F, S, width) of (B, T, S, D), time included."""
        slots = self.embed_slot(history)
        if self.config.motion:
            time = time[:, None] + self.embed_motion(last_motion(history, hidden, future))
        else:
            time = time[:, None]
        anchor = self.mask_slot + self.anchor_slot(history[:, :1])
        if hidden is not None:
            # A tube hides the first frame too: then no anchor may leak the object's identity.
            anchor = torch.where(hidden[:, :1, :, None], self.mask_slot.to(anchor.dtype), anchor)
            slots = torch.where(hidden.unsqueeze(-1), anchor, slots)
        return torch.cat([slots, anchor.expand(-1, future, -1, -1)], dim=1) + time

    def _proprio_cells(self, history: Tensor, time: Tensor, future: int) -> Tensor:
        """Embedded proprioception (B, T + F, width) of (B, T, P), time included."""
        unseen = self.mask_proprio + self.anchor_proprio(history[:, :1])
        cells = torch.cat([self.embed_proprio(history), unseen.expand(-1, future, -1)], dim=1)
        return cells + time

    def _add_base(
        self, prediction: Latent, history: Latent, hidden: Tensor | None, read_frames: int, future: int
    ) -> Latent:
        if not self.config.residual:
            return prediction
        slots, proprio = last_visible(history, hidden, future)
        return Latent(prediction.slots + slots[:, -read_frames:], prediction.proprio + proprio[:, -read_frames:])


def last_motion(history: Tensor, hidden: Tensor | None, future: int) -> Tensor:
    """For every cell of T + F frames the last visible latent of the same object, and its change.

    Args:
        history: slots (B, T, S, D).
        hidden: (B, T, S) bool or None for nothing hidden.
        future: F.

    Returns:
        (B, T + F, S, 2 D): the latent, 0 if none is visible, and how it differs from that of the frame before, 0 where
        that frame is hidden or there is none.
    """
    change = F.pad(history[:, 1:] - history[:, :-1], (0, 0, 0, 0, 1, 0))
    if hidden is not None:
        change = change.masked_fill(F.pad(hidden[:, :-1], (0, 0, 1, 0), value=True).unsqueeze(-1), 0.0)
    return _last(torch.cat([history, change], dim=-1), hidden, future)


def last_visible(history: Latent, hidden: Tensor | None, future: int) -> Latent:
    """For every cell of T + F frames the last visible latent of the same object at or before it (0 if none).

    Args:
        history: slots (B, T, S, D), proprio (B, T, P).
        hidden: (B, T, S) bool or None for nothing hidden.
        future: F.
    """
    proprio = history.proprio
    return Latent(
        _last(history.slots, hidden, future), torch.cat([proprio, proprio[:, -1:].expand(-1, future, -1)], dim=1)
    )


def _last(values: Tensor, hidden: Tensor | None, future: int) -> Tensor:
    """``last_visible`` of numbers (B, T, S, N) of objects."""
    if hidden is not None:
        frames = torch.arange(values.shape[1], device=values.device)[:, None]
        latest = torch.where(hidden, -1, frames).cummax(dim=1).values.unsqueeze(-1)
        values = values.gather(1, latest.clamp(min=0).expand_as(values)).masked_fill(latest < 0, 0.0)
    return torch.cat([values, values[:, -1:].expand(-1, future, -1, -1)], dim=1)
