"""``stage=predictor``: latent dynamics on frozen slots, C-JEPA's masked prediction or a system to compare it with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric.utilities import move_data_to_device
from numpy.typing import NDArray
from torch import Tensor, nn

from cjepa_agent.checkpoint import Checkpoint
from cjepa_agent.data.slot_data import SlotWindows
from cjepa_agent.encoders.autoencoder import SlotAutoencoder
from cjepa_agent.encoders.base import POSITION_DIM, centroid_of
from cjepa_agent.encoders.kinds import EncoderConfig
from cjepa_agent.encoders.patches import PatchTokenConfig
from cjepa_agent.latent import Latent
from cjepa_agent.predictors.cjepa import MaskedPredictor
from cjepa_agent.predictors.kinds import AnyPredictorConfig
from cjepa_agent.predictors.losses import LossSettings, mean_square, saturated
from cjepa_agent.predictors.masking import MaskConfig, sample_mask
from cjepa_agent.training.ctt import CTTConfig, ctt_terms
from cjepa_agent.training.image_loss import Pixels, PixelSampler, image_error
from cjepa_agent.training.loop import TrainerConfig
from cjepa_agent.world_model import WorldModel, WorldModelConfig
from planners import ActionPrior

FIT_ROWS, FIT_NUMBERS = 20000, 2**25  # most rows, and numbers of slots in them, that normalisation is fitted on
SEED_STRIDE = 1_000_003  # between what trainings with successive seeds choose; more than any has steps
STILL = 1e-6  # variance of a centroid, half frames squared (a quarter px), that counts as none


@dataclass(frozen=True)
class DynamicsTrainingConfig:
    """What the predictor is trained on.

    Attributes:
        action_block: environment actions in one step of the model; for videos the frames from one step to the next.
        single_frame: probability that a batch's history is one frame, as that of plans is (``planner.context``); the
            others have ``shortest`` to ``predictor.history`` frames, of which objects can be hidden.
        shortest: see there.
        context: frames of history that rollouts start from.
        rollout_from: share of the training after which the loss also runs through a rollout.
        rollout_blocks: its length in action blocks; also the horizon of validation.
        rollout_batch: samples per step of the rollout term.
        rollout_weight: its weight.
        proprio_weight: weight of the proprioception term.
        saturation: squared error of a slot, mean over its normalised numbers, beyond which larger errors count little
            more (``cjepa_agent.predictors.losses.saturated``); 0 for mean squared errors as the paper has them.
        image_weight: of the squared error of predicted slots as the encoder's frozen decoder draws them, colours in
            0..1, against the true frames: SlotFormer's image reconstruction loss, published with 1 for colours in
            -1..1, which is 4 here; 0 for none. Needs ``data`` with frames and an encoder that learned to draw them.
        image_frames: predicted frames that are drawn, of a step's windows and as many of its rollouts.
        image_points: pixels of each.
        windows: validation windows.
    """

    action_block: int = 5
    single_frame: float = 0.6
    shortest: int = 2
    context: int = 1
    rollout_from: float = 0.75
    rollout_blocks: int = 5
    rollout_batch: int = 32
    rollout_weight: float = 1.0
    proprio_weight: float = 1.0
    saturation: float = 0.0
    image_weight: float = 0.0
    image_frames: int = 16
    image_points: int = 256
    windows: int = 1024

    def __post_init__(self) -> None:
        if not (0 <= self.single_frame <= 1 and 0 <= self.rollout_from <= 1):
            raise ValueError(f"dynamics.single_frame and rollout_from are shares in [0, 1], got {self}")
        if min(self.action_block, self.context, self.rollout_blocks, self.rollout_batch, self.windows) < 1:
            raise ValueError(
                f"dynamics.action_block, context, rollout_blocks, rollout_batch, windows must be positive, got {self}"
            )
        if min(self.saturation, self.image_weight, self.rollout_weight, self.proprio_weight) < 0:
            raise ValueError(
                f"dynamics.saturation, image_weight, rollout_weight, proprio_weight must be 0 or more, got {self}"
            )
        if min(self.image_frames, self.image_points) < 1:
            raise ValueError(f"dynamics.image_frames and image_points must be positive, got {self}")
        if self.shortest < 2:
            raise ValueError(f"dynamics.shortest must be at least 2, got {self.shortest}; see single_frame")


class PredictorStage:
    """Draws windows of latents and minimises the predictor's loss, at the end also the error of rollouts.

    Args:
        data: slots, proprioception and actions.
        autoencoder: encoder and decoder that the slots come from; they stay as they are.
        predictor: architecture of what is trained.
        mask: what is hidden of the history from a masked predictor; it is drawn for others, too, so that the same
            seed gives all that predict as many frames per call, and run through rollouts alike, the same samples as
            C-JEPA with whole objects or nothing hidden.
        dynamics: see there.
        trainer: its steps and seed are read.
        recipe: kept in the checkpoint as the record of the training.
        init: a checkpoint whose predictor and normalisation the training starts from; None starts anew.
        ctt: terms of the attention graph beside the loss; None for none.

    Raises:
        FileNotFoundError: ``dynamics.image_weight`` needs the data set of videos, and there is none.
        ValueError: ``init`` has another encoder or another predictor architecture, the history is shorter than
            ``dynamics`` asks for, ``ctt`` needs the attention of another predictor, or there are no frames that
            ``dynamics.image_weight`` needs.
    """

    def __init__(
        self,
        data: SlotWindows,
        autoencoder: SlotAutoencoder,
        predictor: AnyPredictorConfig,
        mask: MaskConfig,
        dynamics: DynamicsTrainingConfig,
        trainer: TrainerConfig,
        recipe: Mapping[str, Any],
        init: Checkpoint | None = None,
        ctt: CTTConfig | None = None,
    ) -> None:
        self.data, self.mask, self.dynamics, self.ctt = data, mask, dynamics, ctt or CTTConfig()
        self.steps, self.seed, self.recipe = trainer.steps, trainer.seed, recipe
        if dynamics.context > predictor.history or dynamics.shortest > max(2, predictor.history):
            raise ValueError(
                f"predictor.history is {predictor.history}, less than dynamics.context {dynamics.context} or "
                f"dynamics.shortest {dynamics.shortest}"
            )
        if init is None:
            self.world_model = fitted_world_model(data, autoencoder, predictor, dynamics, trainer.seed)
        else:
            self.world_model = continued_world_model(init, data, autoencoder, predictor)
        self.model = DynamicsLoss(self.world_model, mask, dynamics, self.ctt)
        if self.world_model.config.action_block != dynamics.action_block:
            raise ValueError(
                f"init has action blocks of {self.world_model.config.action_block}, dynamics.action_block is "
                f"{dynamics.action_block}; set the same"
            )
        self.history, self.future = predictor.history, self.world_model.predictor.future
        block, self.path = self.world_model.config.action_block, dynamics.context + dynamics.rollout_blocks
        lengths = {self.path, *(frames + self.future for frames in range(1, self.history + 1))}
        self.starts = {frames: data.window_starts("train", frames, block) for frames in lengths}
        held_out = data.window_starts("validation", self.path, block)
        order = np.random.default_rng(trainer.seed).permutation(len(held_out))[: dynamics.windows]
        self.held_out = held_out[order]
        self.sampler = (
            PixelSampler(data, autoencoder, dynamics.image_frames, dynamics.image_points)
            if dynamics.image_weight
            else None
        )
        self._choices = torch.Generator()
        torch.manual_seed(trainer.seed)  # dropout's

    @property
    def hidden_matrices(self) -> list[nn.Parameter]:
        """Weight matrices of the predictor's blocks."""
        return self.world_model.predictor.hidden_matrices

    def loss(
        self, model: nn.Module, step: int, batch: int, rows: slice, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The predictor's loss on one batch, the rollout term in the last part of the training, and optional terms."""
        # What optional terms choose is drawn apart from the samples, so that these are the same for all systems, and
        # seeded by the step, so that a resumed run chooses the same.
        choices = self._choices.manual_seed(self.seed * SEED_STRIDE + step)
        processes, rolled = batch // (rows.stop - rows.start), self.dynamics.rollout_batch
        if rolled % processes:
            raise ValueError(f"dynamics.rollout_batch {rolled} is not a multiple of {processes} processes")
        frames = self._history_length(generator)
        starts = self._draw(frames + self.future, batch, generator)
        slots = self.world_model.config.encoder.n_slots
        hidden = sample_mask(self.mask, batch, frames, slots, generator)[rows]
        rollout = choice = None
        if self.ctt.on and frames > 1 and step >= self.ctt.start * self.steps:
            choice = torch.rand(batch, 2, slots, generator=choices)[rows]
        pixels = self._pixels(starts, frames, self.future, rows, choices)
        rollout_pixels = None
        if step >= self.dynamics.rollout_from * self.steps:
            first, last = (edge * rolled // batch for edge in (rows.start, rows.stop))
            drawn, part = self._draw(self.path, rolled, generator), slice(first, last)
            rollout = self._windows(drawn[part], self.path)
            rollout_pixels = self._pixels(drawn, self.dynamics.context, self.dynamics.rollout_blocks, part, choices)
        window = self._windows(starts[rows], frames + self.future)
        inputs = (window, hidden, rollout, choice, pixels, rollout_pixels)
        terms: dict[str, Tensor] = model(*move_data_to_device(inputs, _device(model)))
        return terms

    def _pixels(
        self, starts: NDArray[np.int64], frames: int, future: int, part: slice, generator: torch.Generator
    ) -> Pixels | None:
        """Pixels of the ``future`` frames after the first ``frames`` of windows, if the loss needs any."""
        if self.sampler is None:
            return None
        later = np.arange(frames, frames + future) * self.world_model.config.action_block
        return self.sampler.draw(starts[:, None] + later, part, generator)

    def _history_length(self, generator: torch.Generator) -> int:
        if self.history == 1 or float(torch.rand((), generator=generator)) < self.dynamics.single_frame:
            return 1
        return int(torch.randint(self.dynamics.shortest, self.history + 1, (), generator=generator))

    def _draw(self, frames: int, count: int, generator: torch.Generator) -> NDArray[np.int64]:
        starts = self.starts[frames]
        chosen: NDArray[np.int64] = starts[torch.randint(len(starts), (count,), generator=generator).numpy()]
        return chosen

    def _windows(self, starts: NDArray[np.int64], frames: int) -> tuple[Latent, Tensor]:
        return self.data.windows(starts, frames, self.world_model.config.action_block)

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Rollout error of object slots after 1..H blocks, also as a share of the error of copying the last frame."""
        trained = _world_model(model)
        blocks, context = self.dynamics.rollout_blocks, self.dynamics.context
        device = _device(model)
        model_error, copy_error = torch.zeros(2, blocks, device=device)
        for starts in np.array_split(self.held_out, max(1, len(self.held_out) // 256)):
            latent, actions = move_data_to_device(self._windows(starts, self.path), device)
            latent = trained.latent(latent.slots, latent.proprio)
            predicted = roll(trained, latent, actions, context)
            last, later = latent.slots[:, context - 1 : context], latent.slots[:, context:]
            model_error += (predicted.slots - later).square().mean((0, 2, 3)) * len(starts)
            copy_error += (last - later).square().mean((0, 2, 3)) * len(starts)
        ratio = model_error / copy_error
        error = model_error / len(self.held_out)
        return {f"rollout_{h + 1}": float(error[h]) for h in range(blocks)} | {
            f"against_copy_{h + 1}": float(ratio[h]) for h in range(blocks)
        }

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the whole world model as a checkpoint folder ``checkpoint``."""
        Checkpoint(_world_model(model), self._action_prior(), self.recipe).save_pretrained(folder / "checkpoint")

    def _action_prior(self) -> ActionPrior | None:
        config = self.world_model.config
        if config.action_dim == 0:
            return None
        blocks = self.data.blocks(self.starts[1 + self.future], 1, config.action_block)[:, 0]
        bound = torch.ones(blocks.shape[1])
        return ActionPrior.fit(blocks, -bound, bound)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


class DynamicsLoss(nn.Module):
    """The world model wrapped so that one call gives the loss, which is what data-parallel training needs.

    Args:
        world_model: its predictor is trained.
        mask: weights of what it hides.
        dynamics: weights of terms.
        ctt: weights of CTT's.

    Raises:
        ValueError: CTT's terms have weights, but the predictor's attention is no graph of objects.
    """

    def __init__(
        self, world_model: WorldModel, mask: MaskConfig, dynamics: DynamicsTrainingConfig, ctt: CTTConfig
    ) -> None:
        super().__init__()
        self.settings = LossSettings(
            dynamics.proprio_weight, mask.history_weight, mask.future_weight, dynamics.saturation
        )
        self.world_model, self.dynamics, self.ctt = world_model, dynamics, ctt
        if ctt.on and not isinstance(world_model.predictor, MaskedPredictor):
            raise ValueError(
                f"ctt needs the attention of C-JEPA's predictor, got {world_model.config.predictor.title}; "
                f"set predictor=default, or ctt.sufficiency_weight and ctt.invariance_weight to 0"
            )

    def forward(
        self,
        window: tuple[Latent, Tensor],
        hidden: Tensor,
        rollout: tuple[Latent, Tensor] | None,
        choice: Tensor | None,
        pixels: Pixels | None,
        rollout_pixels: Pixels | None,
    ) -> dict[str, Tensor]:
        """Loss terms of one batch.

        Args:
            window: raw slots (B, T + F, S, D), raw proprio (B, T + F, P); action blocks (B, T + F - 1, A).
            hidden: (B, T, S).
            rollout: raw latents (R, context + H, ...), action blocks (R, context + H - 1, A), or None.
            choice: (B, 2, S), see ``ctt_terms``; None without CTT's terms.
            pixels: of the F frames of the windows; None without image loss.
            rollout_pixels: of the H frames of the rollouts, likewise.
        """
        model, settings, context = self.world_model, self.settings, self.dynamics.context
        latent, frames = model.latent(window[0].slots, window[0].proprio), hidden.shape[1]
        history = latent.select((slice(None), slice(0, frames)))
        future = latent.slots.shape[1] - frames
        actions = model.processor.action(window[1])
        raw = model.predictor(history, actions, hidden, future)
        none, cells = torch.zeros_like(hidden), raw.slots.shape[1]
        unseen = hidden if model.predictor.masked else none
        entered = arrivals(window[0].slots, unseen, cells, model.predictor.causal)
        prediction = excused(raw, latent, entered)
        terms = model.predictor.loss(prediction, latent, hidden, settings)._asdict()
        if choice is not None:
            predictor = cast(MaskedPredictor, model.predictor)
            absent = arrivals(window[0].slots, none, cells)
            ctt = ctt_terms(
                predictor, latent, actions, hidden, raw.slots, absent, choice, self.ctt, settings.saturation
            )
            weighted = self.ctt.sufficiency_weight * ctt.sufficiency + self.ctt.invariance_weight * ctt.invariance
            terms |= {"total": terms["total"] + weighted, **ctt._asdict()}
        if pixels is not None:
            image = image_error(model, prediction.slots[:, -future:], pixels)
            terms |= {"total": terms["total"] + self.dynamics.image_weight * image, "image": image}
        if rollout is None:
            return terms
        target = model.latent(rollout[0].slots, rollout[0].proprio)
        none = torch.zeros_like(rollout[0].slots[:, :context, :, 0], dtype=torch.bool)
        predicted = roll(model, target, rollout[1], context)
        predicted = excused(predicted, target, arrivals(rollout[0].slots, none, predicted.slots.shape[1]))
        later = target.select((slice(None), slice(context, None)))
        objects = saturated((predicted.slots - later.slots).square().mean(-1), settings.saturation).mean()
        # A target that is embedded could shrink to a constant.
        along = objects + settings.proprio_weight * mean_square(predicted.proprio - later.proprio.detach())
        terms |= {"rollout": along}
        if rollout_pixels is not None:
            terms["rollout_image"] = image_error(model, predicted.slots, rollout_pixels)
            along = along + self.dynamics.image_weight * terms["rollout_image"]
        return {**terms, "total": terms["total"] + self.dynamics.rollout_weight * along}


def arrivals(slots: Tensor, hidden: Tensor, predicted: int, causal: bool = False) -> Tensor:
    """Which cells (B, K, S) of the last K frames hold an object of which nothing was shown before it entered.

    Args:
        slots: raw (B, T + F, S, D); empty ones, as of ``encoder=clevrer_state``, are 0.
        hidden: (B, T, S) cells of the history that are not shown. Of objects hidden throughout none counts as entered.
        predicted: K.
        causal: whether a frame is predicted from the frames of the history before it alone, K = T and F = 1.
    """
    empty, frames = (slots == 0).all(-1), hidden.shape[1]
    shown = ~empty[:, :frames] & ~hidden
    known = shown.cummax(1).values if causal else shown.any(1, keepdim=True)
    return ~known & ~hidden.all(1, keepdim=True) & ~empty[:, -predicted:]


def excused(prediction: Latent, target: Latent, entered: Tensor) -> Latent:
    """A prediction that is right about what ``entered``, (B, K, S).

    Nobody can foretell what enters a scene, and errors about it would outweigh all others. That a slot stays empty is
    to be predicted like all else: where errors about it did not count, masked predictors filled empty slots.

    Args:
        prediction: (B, K, ...) of the last K frames of the target.
        target: (B, T + F, ...).
        entered: see ``arrivals``.
    """
    truth = target.slots.detach()[:, -prediction.slots.shape[1] :]
    return prediction._replace(slots=torch.where(entered[..., None], truth, prediction.slots))


def _world_model(model: nn.Module) -> WorldModel:
    if not isinstance(model, DynamicsLoss):
        raise TypeError(f"expected the DynamicsLoss that was trained, got {type(model).__name__}")
    return model.world_model


def fitted_world_model(
    data: SlotWindows,
    autoencoder: SlotAutoencoder,
    predictor: AnyPredictorConfig,
    dynamics: DynamicsTrainingConfig,
    seed: int,
) -> WorldModel:
    """A world model around a trained encoder: roles and normalisation found from training data, predictor random.

    Only slots of Push-T's encoder have roles, and places that are normalised apart. Of videos whatever moves can be in
    any slot, through patches whatever moves passes, and slots of encoders by others do not tell where they are.

    Args:
        data: slots of a dataset.
        autoencoder: where they come from.
        predictor: architecture.
        dynamics: its rollouts are as long as the planning horizon.
        seed: of the predictor's weights and of the rows that normalisation is fitted on.

    Raises:
        ValueError: most actions are outside of the bounds of plans.
    """
    config = WorldModelConfig(
        encoder=autoencoder.config,
        predictor=predictor,
        proprio_dim=data.proprio.shape[1],
        env_action_dim=data.actions.shape[1],
        action_block=dynamics.action_block,
    )
    placed, horizon = isinstance(config.encoder, EncoderConfig), dynamics.rollout_blocks
    starts = data.window_starts("train", horizon + 1, config.action_block)
    rows = min(FIT_ROWS, FIT_NUMBERS // (config.encoder.n_slots * config.encoder.slot_dim), len(starts))
    chosen = np.random.default_rng(seed).choice(starts, rows, replace=False)
    now, later = data.frames(chosen), data.frames(chosen + horizon * config.action_block)
    blocks = data.blocks(chosen, 1, config.action_block)[:, 0]
    if config.env_action_dim and (blocks.abs() > 1).double().mean() > 0.5:
        raise ValueError(
            f"{data.name} has more than half of its actions outside of -1 to 1, the bounds that plans keep to; "
            "scale them to these"
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = replace(config, roles=find_roles(now, later) if config.proprio_dim and placed else {})
        model = WorldModel(config)
    model.encoder.load_state_dict(autoencoder.encoder.state_dict())
    model.decoder.load_state_dict(autoencoder.decoder.state_dict())
    measure = slice(None) if isinstance(config.encoder, PatchTokenConfig) else config.roles.get("block")
    model.processor.fit(
        now.slots,
        later.slots,
        now.proprio,
        blocks,
        POSITION_DIM if placed else 0,
        measure,
        raw_slots=model.predictor.raw_slots,
    )
    return model


def continued_world_model(
    init: Checkpoint, data: SlotWindows, autoencoder: SlotAutoencoder, predictor: AnyPredictorConfig
) -> WorldModel:
    """The world model of ``init``, to train on.

    Raises:
        ValueError: its encoder is not the one that the slots come from, its predictor has another architecture, or
            the data have other numbers of proprioception or action.
    """
    model = init.model
    if model.config.predictor != predictor:
        raise ValueError(f"init has the predictor {model.config.predictor}, asked for is {predictor}; set the same")
    if not autoencoder.is_of(model):
        raise ValueError("init has another encoder than the slots; extract slots with encoder=<the same checkpoint>")
    known = {"proprio": model.config.proprio_dim, "action": model.config.env_action_dim}
    found = {"proprio": data.proprio.shape[1], "action": data.actions.shape[1]}
    if found != known:
        raise ValueError(f"init has numbers per frame of {known}, the data have {found}; train without init=")
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


def roll(model: WorldModel, latent: Latent, actions: Tensor, context: int) -> Latent:
    """Rollout from the first frames of latents (B, context + H, ...).

    Args:
        model: predicts.
        latent: where to start; what comes after the context is not looked at.
        actions: (B, context + H - 1, A), those that were taken.
        context: frames to start from.

    Returns:
        Latents (B, H, ...).
    """
    history = latent.select((slice(None), slice(0, context)))
    if model.config.action_dim == 0:
        return model.forecast(history, latent.slots.shape[1] - context)
    predicted = model.rollout(history, actions[:, : context - 1], actions[:, context - 1 :].unsqueeze(1))
    return predicted.select((slice(None), 0))
