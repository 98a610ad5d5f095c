"""The predictor as C-JEPA's authors released it, for their weights (``predictor=released``).

What differs from ``MaskedPredictor``, and is not to be improved, since weights depend on it:

- a token is the slot itself, neither embedded nor normalised, and attention reads it without a norm before it;
- proprioception and action are nodes of their own, embedded to the width of a slot; the state that is predicted and
  compared is the embedding of proprioception;
- future action nodes are hidden like all future cells: only actions of the history are seen;
- training reads the time embedding from its first row on, ``inference`` its last rows, whatever the history's length;
- at test time predicted slots are put in the order of the last frame's, and the history grows to its full length;
- the loss counts all frames of objects that are hidden, their first one, which is shown, among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cjepa_agent.latent import Latent
from cjepa_agent.matching import match_slots
from cjepa_agent.predictors.base import Predictor
from cjepa_agent.predictors.losses import LossSettings, LossTerms, cjepa_loss, hidden_throughout


@dataclass(frozen=True)
class ReleasedPredictorConfig:
    """Architecture of the released predictor; the defaults are those of the Push-T checkpoints.

    Attributes:
        depth: number of transformer blocks.
        width: channels of a token, which are those of a slot.
        heads: attention heads; must divide ``width``.
        mlp: hidden units of each block's MLP.
        dropout: probability, while training.
        history: most frames of history, T.
        future: frames predicted in one call, F.
        matching: put predicted slots in the order of the last frame's at test time.
        kind: ``released``.
    """

    title: ClassVar[str] = "C-JEPA"
    depth: int = 6
    width: int = 128
    heads: int = 16
    mlp: int = 2048
    dropout: float = 0.1
    history: int = 3
    future: int = 1
    matching: bool = True
    kind: Literal["released"] = "released"

    def __post_init__(self) -> None:
        if min(self.depth, self.width, self.heads, self.mlp, self.history, self.future) < 1 or self.width % self.heads:
            raise ValueError(f"predictor sizes must be positive and heads divide width, got {self}")

    def build(self, n_slots: int, slot_dim: int, proprio_dim: int, action_dim: int) -> ReleasedPredictor:
        """The predictor with random weights; raises ValueError if a slot is not as wide as a token."""
        if slot_dim != self.width:
            raise ValueError(
                f"predictor=released uses slots as tokens: slots of {slot_dim} do not fit width {self.width}; set "
                f"predictor.width={slot_dim}"
            )
        return ReleasedPredictor(self, n_slots, proprio_dim, action_dim)


class _Transformer(nn.Module):
    """Blocks of attention without a norm before it and a pre-norm MLP, then a norm."""

    def __init__(self, config: ReleasedPredictorConfig) -> None:
        super().__init__()
        width, drop = config.width, config.dropout
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    nn.MultiheadAttention(width, config.heads, dropout=drop, batch_first=True),
                    nn.Sequential(
                        nn.LayerNorm(width),
                        nn.Linear(width, config.mlp),
                        nn.GELU(),
                        nn.Dropout(drop),
                        nn.Linear(config.mlp, width),
                        nn.Dropout(drop),
                    ),
                ]
            )
            for _ in range(config.depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for attention, mlp in (layer.children() for layer in self.layers):
            x = x + attention(x, x, x, need_weights=False)[0]
            x = x + mlp(x)
        normed: Tensor = self.norm(x)
        return normed


class ReleasedPredictor(Predictor):
    """The released masked predictor with the interface of ``MaskedPredictor``; tensors have the authors' names.

    Args:
        config: architecture.
        n_slots: S.
        proprio_dim: P; 0 for a model without proprioception and action nodes (CLEVRER).
        action_dim: A, 0 likewise.

    Raises:
        ValueError: only one of the two nodes is there.
    """

    grows = True  # a rollout's history grows to ``config.history`` frames
    raw_slots = True
    masked = True

    def __init__(self, config: ReleasedPredictorConfig, n_slots: int, proprio_dim: int, action_dim: int) -> None:
        super().__init__(config.history, n_slots, config.future)
        if (proprio_dim == 0) != (action_dim == 0):
            raise ValueError(f"the released predictors have both nodes or none, got P={proprio_dim}, A={action_dim}")
        self.config, self.nodes = config, proprio_dim > 0
        self.proprio_dim, self.action_dim = proprio_dim, action_dim
        width = config.width
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.time_pos_embed = nn.Parameter(torch.randn(1, config.history + config.future, 1, width))
        self.id_projector = nn.Linear(width, width)
        self.transformer = _Transformer(config)
        self.to_out = nn.Linear(width, width)
        if self.nodes:
            self.proprio_encoder, self.action_encoder = nn.Linear(proprio_dim, width), nn.Linear(action_dim, width)

    @property
    def frame_tokens(self) -> int:
        """S, and the two nodes if there are."""
        return self.n_slots + (2 if self.nodes else 0)

    @property
    def hidden_matrices(self) -> list[nn.Parameter]:
        """Weight matrices of the transformer's blocks."""
        return [p for p in self.transformer.parameters() if p.ndim == 2]

    def embed(self, latent: Latent) -> Latent:
        """Normalised slots (..., S, D) and proprioception (..., P) to what is predicted: (..., S, D) and (..., D)."""
        return Latent(latent.slots, self.proprio_encoder(latent.proprio)) if self.nodes else latent

    def forward(self, history: Latent, actions: Tensor, hidden: Tensor | None = None, future: int = 1) -> Latent:
        """Predict the cells of history and future.

        Args:
            history: slots (B, T, S, D) and embedded proprio (B, T, D), 1 <= T <= config.history; proprio (B, T, 0)
                without nodes.
            actions: (B, >= T, A) normalised action blocks, the t-th taken at frame t; those after the T-th are not
                looked at.
            hidden: (B, T, S) bool, history cells not shown; None at test time, which is the authors' ``inference``.
            future: frames to return, at most config.future.

        Returns:
            Predictions for frames 0..T+F-1 if ``hidden`` is given (the authors' ``forward``), else for the F future
            frames only: slots (B, frames, S, D) and embedded proprio (B, frames, D).

        Raises:
            ValueError: shapes that do not fit the configuration.
        """
        frames = history.slots.shape[1]
        self._check_history(history, future)
        if self.nodes and actions.shape[1] < frames:
            raise ValueError(f"{frames} history frames need {frames} action blocks, got {actions.shape[1]}")
        cells = history.slots
        if self.nodes:
            nodes = torch.stack([history.proprio, self.action_encoder(actions[:, :frames])], dim=2)
            cells = torch.cat([cells, nodes], dim=2)
        steps = frames + self.config.future
        anchor = self.id_projector(cells[:, :1])
        if hidden is None:
            time, query = self.time_pos_embed[:, -steps:], self.mask_token.unsqueeze(1) + anchor
        else:
            time = self.time_pos_embed[:, :steps]
            unseen = F.pad(hidden, (0, cells.shape[2] - self.n_slots)).unsqueeze(-1)
            # A tube, which the authors' code does not have, hides the first frame, too: no anchor may tell of it.
            query = self.mask_token.unsqueeze(1) + torch.where(unseen[:, :1], 0.0, anchor)
            cells = torch.where(unseen, query, cells)
        x = torch.cat([cells, query.expand(-1, self.config.future, -1, -1)], dim=1) + time
        predicted = self.to_out(self.transformer(x.flatten(1, 2))).unflatten(1, (steps, -1)).float()
        if hidden is None:
            predicted = self._ordered(predicted[:, frames:], history.slots[:, -1])
        predicted = predicted[:, : predicted.shape[1] - self.config.future + future]
        proprio = predicted[:, :, self.n_slots] if self.nodes else predicted.new_empty(*predicted.shape[:2], 0)
        return Latent(predicted[:, :, : self.n_slots], proprio)

    def loss(self, prediction: Latent, target: Latent, hidden: Tensor, settings: LossSettings) -> LossTerms:
        """The authors' loss: see ``cjepa_loss``, with an object that only its first frame tells counted there, too."""
        return cjepa_loss(prediction, target, hidden | hidden_throughout(hidden).unsqueeze(1), settings)

    def _ordered(self, predicted: Tensor, last: Tensor) -> Tensor:
        """Predicted cells (B, F, N, D) with slots in the order that puts the first frame's nearest to ``last``."""
        if not self.config.matching:
            return predicted
        order = match_slots(predicted[:, 0, : self.n_slots], last)
        nodes = torch.arange(self.n_slots, predicted.shape[2], device=order.device).expand(len(order), -1)
        return predicted.take_along_dim(torch.cat([order, nodes], dim=1)[:, None, :, None], dim=2)
