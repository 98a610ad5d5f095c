"""``stage=predictor``: latent dynamics on frozen slots, C-JEPA's masked prediction or a system to compare it with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cjepa_agent.autoencoder import SlotAutoencoder
from cjepa_agent.checkpoint import Checkpoint
from cjepa_agent.encoder import POSITION_DIM, centroid_of
from cjepa_agent.latent import Latent
from cjepa_agent.masking import MaskConfig, sample_mask
from cjepa_agent.slot_data import SlotData
from cjepa_agent.training.loop import TrainerConfig
from cjepa_agent.world_model import TrainedPredictorConfig, WorldModel, WorldModelConfig
from planners import ActionPrior

FIT_ROWS = 20000  # rows that normalisation is fitted on
STILL = 1e-6  # variance of a centroid, half frames squared (a quarter px), that counts as none


@dataclass(frozen=True)
class DynamicsTrainingConfig:
    """What the predictor is trained on.

    Attributes:
        single_frame: probability that a batch's history is one frame, as that of plans is (``planner.context``); the
            others have two to ``predictor.history`` frames, of which objects can be hidden.
        rollout_from: share of the training after which the loss also runs through a rollout.
        rollout_blocks: its length in action blocks; also the horizon of validation.
        rollout_batch: samples per step of the rollout term.
        rollout_weight: its weight.
        proprio_weight: weight of the proprioception term.
        windows: validation windows.
    """

    single_frame: float = 0.6
    rollout_from: float = 0.75
    rollout_blocks: int = 5
    rollout_batch: int = 32
    rollout_weight: float = 1.0
    proprio_weight: float = 1.0
    windows: int = 1024

    def __post_init__(self) -> None:
        if not (0 <= self.single_frame <= 1 and 0 <= self.rollout_from <= 1):
            raise ValueError(f"dynamics.single_frame and rollout_from are shares in [0, 1], got {self}")
        if min(self.rollout_blocks, self.rollout_batch, self.windows) < 1:
            raise ValueError(f"dynamics.rollout_blocks, rollout_batch and windows must be positive, got {self}")


class PredictorStage:
    """Draws windows of latents and minimises the predictor's loss, at the end also the error of rollouts.

    Args:
        data: slots, proprioception and actions.
        autoencoder: encoder and decoder that the slots come from; they stay as they are.
        predictor: architecture of what is trained.
        mask: what is hidden of the history from a masked predictor; it is drawn for others, too, so that the same
            seed gives all of them the same samples.
        dynamics: see there.
        trainer: its steps and seed are read.
        recipe: kept in the checkpoint as the record of the training.
        init: a checkpoint whose predictor and normalisation the training starts from; None starts anew.

    Raises:
        ValueError: ``init`` has another encoder or another predictor architecture.
    """

    def __init__(
        self,
        data: SlotData,
        autoencoder: SlotAutoencoder,
        predictor: TrainedPredictorConfig,
        mask: MaskConfig,
        dynamics: DynamicsTrainingConfig,
        trainer: TrainerConfig,
        recipe: Mapping[str, Any],
        init: Checkpoint | None = None,
    ) -> None:
        self.data, self.mask, self.dynamics = data, mask, dynamics
        self.steps, self.recipe = trainer.steps, recipe
        if init is None:
            self.world_model = fitted_world_model(data, autoencoder, predictor, dynamics.rollout_blocks, trainer.seed)
        else:
            self.world_model = continued_world_model(init, autoencoder, predictor)
        self.model = DynamicsLoss(self.world_model, dynamics)
        self.history, block = predictor.history, self.world_model.config.action_block
        lengths = {*range(2, self.history + 2), dynamics.rollout_blocks + 1}
        self.starts = {frames: data.window_starts("train", frames, block) for frames in lengths}
        held_out = data.window_starts("validation", dynamics.rollout_blocks + 1, block)
        order = np.random.default_rng(trainer.seed).permutation(len(held_out))[: dynamics.windows]
        self.held_out = held_out[order]

    @property
    def hidden_matrices(self) -> list[nn.Parameter]:
        """Weight matrices of the predictor's blocks."""
        return self.world_model.predictor.hidden_matrices

    def loss(
        self, model: nn.Module, step: int, batch: int, rows: slice, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The predictor's loss on one batch, plus the rollout term in the last part of the training."""
        frames = self._history_length(generator)
        starts = self._draw(frames + 1, batch, generator)[rows]
        slots = self.world_model.config.encoder.n_slots
        hidden = sample_mask(self.mask, batch, frames, slots, generator)[rows]
        rollout = None
        if step >= self.dynamics.rollout_from * self.steps:
            share = self.dynamics.rollout_batch * (rows.stop - rows.start) // batch
            offset = rows.start // (rows.stop - rows.start) * share
            drawn = self._draw(self.dynamics.rollout_blocks + 1, self.dynamics.rollout_batch, generator)
            rollout = self._windows(drawn[offset : offset + share], self.dynamics.rollout_blocks + 1)
        terms: dict[str, Tensor] = model(self._windows(starts, frames + 1), hidden, rollout)
        return terms

    def _history_length(self, generator: torch.Generator) -> int:
        if self.history == 1 or float(torch.rand((), generator=generator)) < self.dynamics.single_frame:
            return 1
        return int(torch.randint(2, self.history + 1, (), generator=generator))

    def _draw(self, frames: int, count: int, generator: torch.Generator) -> NDArray[np.int64]:
        starts = self.starts[frames]
        chosen: NDArray[np.int64] = starts[torch.randint(len(starts), (count,), generator=generator).numpy()]
        return chosen

    def _windows(self, starts: NDArray[np.int64], frames: int) -> tuple[Latent, Tensor]:
        return self.data.windows(starts, frames, self.world_model.config.action_block)

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Rollout error of object slots after 1..H blocks as a share of the error of copying the first frame."""
        trained, blocks = _world_model(model), self.dynamics.rollout_blocks
        model_error, copy_error = torch.zeros(blocks), torch.zeros(blocks)
        for starts in np.array_split(self.held_out, max(1, len(self.held_out) // 256)):
            latent, actions = self._windows(starts, blocks + 1)
            latent = trained.latent(latent.slots, latent.proprio)
            predicted = roll(trained, latent, actions)
            model_error += (predicted.slots - latent.slots[:, 1:]).square().mean((0, 2, 3)) * len(starts)
            copy_error += (latent.slots[:, :1] - latent.slots[:, 1:]).square().mean((0, 2, 3)) * len(starts)
        ratio = model_error / copy_error
        error = model_error / len(self.held_out)
        return {f"rollout_{h + 1}": float(error[h]) for h in range(blocks)} | {
            f"against_copy_{h + 1}": float(ratio[h]) for h in range(blocks)
        }

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the whole world model as a checkpoint folder ``checkpoint``."""
        block = self.world_model.config.action_block
        blocks = self.data.blocks(self.starts[2], 1, block)[:, 0]
        bound = torch.ones(blocks.shape[1])
        prior = ActionPrior.fit(blocks, -bound, bound)
        Checkpoint(_world_model(model), prior, self.recipe).save_pretrained(folder / "checkpoint")


class DynamicsLoss(nn.Module):
    """The world model wrapped so that one call gives the loss, which is what data-parallel training needs."""

    def __init__(self, world_model: WorldModel, dynamics: DynamicsTrainingConfig) -> None:
        super().__init__()
        self.world_model, self.dynamics = world_model, dynamics

    def forward(
        self, window: tuple[Latent, Tensor], hidden: Tensor, rollout: tuple[Latent, Tensor] | None
    ) -> dict[str, Tensor]:
        """Loss terms of one batch.

        Args:
            window: raw slots (B, T + 1, S, D), raw proprio (B, T + 1, P); action blocks (B, T, A).
            hidden: (B, T, S).
            rollout: raw latents (R, H + 1, ...), action blocks (R, H, A), or None.
        """
        model, weight = self.world_model, self.dynamics.proprio_weight
        latent = model.latent(window[0].slots, window[0].proprio)
        history = latent.select((slice(None), slice(0, -1)))
        prediction = model.predictor(history, model.processor.action(window[1]), hidden)
        terms = model.predictor.loss(prediction, latent, hidden, weight)
        if rollout is None:
            return terms._asdict()
        target = model.latent(rollout[0].slots, rollout[0].proprio)
        predicted = roll(model, target, rollout[1])
        later = target.select((slice(None), slice(1, None)))
        along = (predicted.slots - later.slots).square().mean() + weight * (
            predicted.proprio - later.proprio
        ).square().mean()
        return {**terms._asdict(), "total": terms.total + self.dynamics.rollout_weight * along, "rollout": along}


def _world_model(model: nn.Module) -> WorldModel:
    if not isinstance(model, DynamicsLoss):
        raise TypeError(f"expected the DynamicsLoss that was trained, got {type(model).__name__}")
    return model.world_model


def fitted_world_model(
    data: SlotData, autoencoder: SlotAutoencoder, predictor: TrainedPredictorConfig, horizon: int, seed: int
) -> WorldModel:
    """A world model around a trained encoder: roles and normalisation found from training data, predictor random.

    Args:
        data: slots of a dataset.
        autoencoder: where they come from.
        predictor: architecture.
        horizon: planning horizon in action blocks.
        seed: of the predictor's weights and of the rows that normalisation is fitted on.
    """
    config = WorldModelConfig(encoder=autoencoder.config, predictor=predictor)
    starts = data.window_starts("train", horizon + 1, config.action_block)
    chosen = np.random.default_rng(seed).choice(starts, min(FIT_ROWS, len(starts)), replace=False)
    now, later = data.frames(chosen), data.frames(chosen + horizon * config.action_block)
    blocks = data.blocks(chosen, 1, config.action_block)[:, 0]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = replace(config, roles=find_roles(now, later))
        model = WorldModel(config)
    model.encoder.load_state_dict(autoencoder.encoder.state_dict())
    model.decoder.load_state_dict(autoencoder.decoder.state_dict())
    model.processor.fit(now.slots, later.slots, now.proprio, blocks, POSITION_DIM, config.roles["block"])
    return model


def continued_world_model(
    init: Checkpoint, autoencoder: SlotAutoencoder, predictor: TrainedPredictorConfig
) -> WorldModel:
    """The world model of ``init``, to train on.

    Raises:
        ValueError: its encoder is not the one that the slots come from, or its predictor has another architecture.
    """
    model = init.model
    if model.config.predictor != predictor:
        raise ValueError(f"init has the predictor {model.config.predictor}, asked for is {predictor}; set the same")
    own, other = model.encoder.state_dict(), autoencoder.encoder.state_dict()
    if own.keys() != other.keys() or not all(torch.equal(own[name], other[name]) for name in own):
        raise ValueError("init has another encoder than the slots; extract slots with encoder=<the same checkpoint>")
    return model


def find_roles(now: Latent, later: Latent) -> dict[str, int]:
    """Which slot is the agent and which the block, from data alone.

    The agent's slot is the one whose centroid is best explained by proprioception; the block's is the one that moves
    most among the others.

    Args:
        now: raw slots (M, S, D) and proprioception (M, P).
        later: the same scenes one horizon later.
    """
    # By singular values, in double precision: proprioception may hold a number that never changes, and with such
    # inputs the default driver's answer differs from process to process.
    centroid = centroid_of(now.slots.double())
    inputs = torch.cat([now.proprio.double(), centroid.new_ones(len(centroid), 1)], dim=1)
    flat = centroid.flatten(1)
    residual = flat - inputs @ torch.linalg.lstsq(inputs, flat, driver="gelsd").solution
    left, total = (values.var(0).unflatten(0, (-1, 2)).sum(-1) for values in (residual, flat))
    unexplained = (left + STILL) / (total + STILL)  # a slot that never moves is not explained, though nothing is left
    agent = int(unexplained.argmin())
    moved = (centroid_of(later.slots.double()) - centroid).square().sum(-1).mean(0)
    moved[agent] = -1.0
    return {"agent": agent, "block": int(moved.argmax())}


def roll(model: WorldModel, latent: Latent, actions: Tensor) -> Latent:
    """Rollout from the first frame of latents (B, H + 1, ...) along the actions taken (B, H, A): (B, H, ...)."""
    first = latent.select((slice(None), slice(0, 1)))
    predicted = model.rollout(first, actions[:, :0], actions.unsqueeze(1))
    return predicted.select((slice(None), 0))
