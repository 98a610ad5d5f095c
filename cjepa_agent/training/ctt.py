"""Sufficiency and invariance of the attention graph, as CTT-JEPA (github.com/GerardCB/cjepa) adds them to C-JEPA.

Causal Transformation Theory asks two things of a causal graph of objects, and its authors take the attention of the
predictor for that graph. Sufficiency (axiom 4): what an object looks at is enough to predict it. Invariance (axiom 6):
an object's prediction stays the same without an object that it does not look at. No gradient flows through the graph.

The published graph averages attention over the frames that are looked at, and over the batch. A row then adds up to
1 / (T + F): with 6 + 10 frames no entry can reach the published threshold of 0.15, and nobody looks at anybody.
Attention added up (``adjacency=sum``) is a probability, and each sample has a graph of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cjepa_agent.latent import Latent
from cjepa_agent.predictors.cjepa import MaskedPredictor
from cjepa_agent.predictors.losses import saturated
from cjepa_agent.predictors.masking import hide_objects

Adjacency = Literal["sum", "mean"]


@dataclass(frozen=True)
class CTTConfig:
    """Terms of Causal Transformation Theory beside C-JEPA's loss; without weights they cost nothing.

    Batches with a single frame of history, of which nothing can be hidden, have none.

    Attributes:
        sufficiency_weight: of the error of an object that is predicted from what it looks at alone.
        invariance_weight: of how much a prediction changes without an object that it does not look at.
        adjacency: what an object looks at: ``sum`` adds its attention up over the frames looked at and takes its share
            among objects; ``mean``, as published, averages it over these frames and over the batch.
        threshold: attention from which on an object is looked at; null for 1 / S, what even attention would give.
        start: share of the training after which the terms are added; before, attention means little.
    """

    sufficiency_weight: float = 0.0
    invariance_weight: float = 0.0
    adjacency: Adjacency = "sum"
    threshold: float | None = None
    start: float = 0.33

    def __post_init__(self) -> None:
        if min(self.sufficiency_weight, self.invariance_weight) < 0:
            raise ValueError(f"ctt.sufficiency_weight and ctt.invariance_weight must be 0 or more, got {self}")
        if self.adjacency not in ("sum", "mean"):
            raise ValueError(f"ctt.adjacency must be sum or mean, got {self.adjacency!r}")
        if not 0 <= self.start <= 1 or not 0 <= (self.threshold or 0) <= 1:
            raise ValueError(f"ctt.start is a share and ctt.threshold attention, both in [0, 1], got {self}")

    @property
    def on(self) -> bool:
        """Whether any term has a weight."""
        return self.sufficiency_weight > 0 or self.invariance_weight > 0


class CTTTerms(NamedTuple):
    """Scalar terms, unweighted; 0 where the weight is."""

    sufficiency: Tensor
    invariance: Tensor


def attention_graph(attention: Tensor, frames: int, config: CTTConfig) -> Tensor:
    """Which objects (B, S, S) an object looks at, queries first, in the last layer and the first future frame.

    Args:
        attention: (B, layers, heads, F, S, S) of ``MaskedPredictor.attention``.
        frames: T + F, those that attention is summed over.
        config: how attention becomes a graph.
    """
    weights = attention[:, -1].mean(1)[:, 0]
    if config.adjacency == "mean":
        weights = (weights / frames).mean(0, keepdim=True).expand_as(weights)
    else:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights >= (1 / weights.shape[-1] if config.threshold is None else config.threshold)


def ctt_terms(
    predictor: MaskedPredictor,
    latent: Latent,
    actions: Tensor,
    hidden: Tensor,
    prediction: Tensor,
    entered: Tensor,
    choice: Tensor,
    config: CTTConfig,
    saturation: float = 0.0,
) -> CTTTerms:
    """Both terms on one batch. The released code chooses one object for a batch; here each sample has its own.

    Args:
        predictor: what is trained; called once more per term, besides its attention.
        latent: slots (B, T + F, S, D) and proprio (B, T + F, P), the truth.
        actions: (B, T + F - 1, A) normalised action blocks.
        hidden: (B, T, S) bool, what C-JEPA's mask hides.
        prediction: (B, T + F, S, D) slots that the predictor gave with ``hidden``.
        entered: (B, T + F, S) bool, cells of objects that the history does not show; their errors do not count.
        choice: (B, 2, S) random numbers, 0 or more: the largest of the first row chooses the object that invariance
            hides, among those of which nothing is hidden; that of the second the object that sufficiency predicts.
        config: weights and graph.
        saturation: see ``cjepa_agent.predictors.losses.saturated``.

    Returns:
        Mean squared errors of future slots, means over samples; a sample counts 0 where the graph leaves nobody out.
    """
    frames = hidden.shape[1]
    history, future = latent.select((slice(None), slice(0, frames))), latent.slots.shape[1] - frames
    graph = attention_graph(predictor.attention(history, actions, hidden, future), frames + future, config)

    def error(hide: Tensor, objects: Tensor, towards: Tensor) -> Tensor:
        """Difference of the future of ``objects`` (B, S) from ``towards`` where ``hide`` is hidden."""
        predicted = predictor(history, actions, hide, future).slots
        cells = saturated((predicted - towards.detach()).square().mean(-1), saturation).masked_fill(entered, 0.0)
        cells = cells[:, frames:].mean(1)
        return ((cells * objects).sum(1) / objects.sum(1).clamp(min=1)).mean()

    sufficiency = invariance = prediction.new_zeros(())
    if config.sufficiency_weight:
        chosen = _largest(choice[:, 1])
        enough = (graph & chosen.unsqueeze(2)).any(1) | chosen
        sufficiency = error(hide_objects(~enough, frames), chosen & ~enough.all(1, keepdim=True), latent.slots)
    if config.invariance_weight:
        visible = ~hidden.any(1)
        removed = _largest(choice[:, 0].masked_fill(~visible, -1)) & visible
        influenced = (graph & removed.unsqueeze(1)).any(2)
        others = visible & ~removed & ~influenced & removed.any(1, keepdim=True)
        invariance = error(hidden | hide_objects(removed, frames), others, prediction)
    return CTTTerms(sufficiency, invariance)


def _largest(numbers: Tensor) -> Tensor:
    """Where the largest of each row (B, S) is, bool."""
    largest = torch.zeros_like(numbers, dtype=torch.bool)
    return largest.scatter(1, numbers.argmax(1, keepdim=True), True)
