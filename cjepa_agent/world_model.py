"""The world model: frozen encoder, processor, predictor, C-JEPA's or another; encode once, roll out many."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import dacite
import torch
from torch import Tensor, nn

from cjepa_agent.encoders.base import VideoEncoder, grid_coordinates
from cjepa_agent.encoders.kinds import AnyEncoderConfig, EncoderConfig, encoder_config
from cjepa_agent.encoders.patches import PatchConfig, PatchTokenConfig
from cjepa_agent.latent import Latent
from cjepa_agent.predictors.base import Predictor
from cjepa_agent.predictors.cjepa import PredictorConfig
from cjepa_agent.predictors.kinds import AnyPredictorConfig, predictor_config
from cjepa_agent.processor import Processor
from configs.kinds import STRICT


@dataclass(frozen=True)
class WorldModelConfig:
    """Everything needed to rebuild a world model; saved as ``config.json``.

    Attributes:
        encoder, predictor: architectures.
        proprio_dim: P, numbers of proprioception; 0 for videos, in which nobody acts.
        env_action_dim: numbers of one environment action, 0 likewise.
        action_block: environment actions in one step of the world model; for videos, frames from one step to the next.
        roles: slot index of each object whose role was found from data, e.g. ``{"agent": 2, "block": 0}``.
    """

    encoder: AnyEncoderConfig = field(default_factory=EncoderConfig)
    predictor: AnyPredictorConfig = field(default_factory=PredictorConfig)
    proprio_dim: int = 4
    env_action_dim: int = 2
    action_block: int = 5
    roles: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.action_block < 1 or min(self.proprio_dim, self.env_action_dim) < 0:
            raise ValueError(
                f"action_block must be 1 or more, proprio_dim and env_action_dim 0 or more, got {self.action_block}, "
                f"{self.proprio_dim} and {self.env_action_dim}"
            )
        if not isinstance(self.roles, dict) or not all(
            isinstance(slot, int) and 0 <= slot < self.encoder.n_slots for slot in self.roles.values()
        ):
            raise ValueError(f"roles must name slots 0 to {self.encoder.n_slots - 1}, got {self.roles}")

    @property
    def action_dim(self) -> int:
        """A, numbers of one action block."""
        return self.env_action_dim * self.action_block

    @property
    def title(self) -> str:
        """What the system is called: OC-DINO-WM is DINO-WM where its tokens are patches, -Reg with registers."""
        title = self.predictor.title
        if not isinstance(self.encoder, PatchTokenConfig):
            return title
        registers = isinstance(self.encoder, PatchConfig) and self.encoder.registers
        return title.removeprefix("OC-") + ("-Reg" if registers else "")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> WorldModelConfig:
        """Rebuild from ``dataclasses.asdict``; raises ValueError naming what does not fit.

        Of encoder and predictor, what a checkpoint of an older release does not tell takes its default.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or set(values) != names:
            found = sorted(values) if isinstance(values, dict) else values
            raise ValueError(f"not a world model configuration: expected {sorted(names)}, got {found}")
        hooks: Any = {AnyEncoderConfig: encoder_config, AnyPredictorConfig: predictor_config}
        try:
            return dacite.from_dict(cls, values, replace(STRICT, type_hooks={**STRICT.type_hooks, **hooks}))
        except dacite.DaciteError as error:
            raise ValueError(f"not a world model configuration: {error}") from error


class WorldModel(nn.Module):
    """Latent dynamics of objects.

    Args:
        config: architecture; weights start random.

    Attributes:
        keep: frames of each call that ``forecast`` keeps, all at first, as C-JEPA's released rollouts do. The last of a
            call are its worst, so that of 10 frames fewer can lead further (``docs/masking.md``).
    """

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        self.config = config
        encoder = config.encoder
        self.encoder, self.decoder = encoder.build()
        self.predictor: Predictor = config.predictor.build(
            encoder.n_slots, encoder.slot_dim, config.proprio_dim, config.action_dim
        )
        self.processor = Processor(encoder.n_slots, encoder.slot_dim, config.proprio_dim, config.action_dim)
        self.keep = self.predictor.future
        self.encoder.requires_grad_(False)
        self.decoder.requires_grad_(False)

    def latent(self, slots: Tensor, proprio: Tensor) -> Latent:
        """Raw slots (..., S, D) and proprioception (..., P) to the state that the predictor predicts."""
        return self.predictor.embed(self.processor.state(slots, proprio))

    @torch.no_grad()
    def encode(self, observed: Tensor, proprio: Tensor, initial: Tensor | None = None) -> Latent:
        """Encode what the encoder observes and raw proprioception (B, P) to a latent (B, ...).

        Scenes are encoded one by one: convolutions round differently in batches of different size, and a
        scene's latent must not depend on which others are encoded with it.

        Args:
            observed: frames (B, H, W, 3) uint8; with ``encoder.kind=state`` true states (B, 7).
            proprio: (B, P).
            initial: slots (B, S, D) of a latent, which those of the scene start from; only where the encoder carries
                slots through videos (``VideoEncoder``).

        Raises:
            ValueError: another shape or dtype, or numbers that are not finite.
        """
        expected = (len(observed), self.config.proprio_dim)
        if proprio.shape != expected or not torch.isfinite(proprio).all():
            raise ValueError(f"proprio must be {expected} finite numbers, got {tuple(proprio.shape)}: {proprio}")
        proprio = proprio.float()
        if isinstance(self.encoder, VideoEncoder) and initial is not None:
            raw = self.processor.raw_slots(initial)
            scenes = [self.encoder.read(*scene) for scene in zip(observed.split(1), raw.split(1), strict=True)]
        else:
            scenes = [self.encoder.read(scene) for scene in observed.split(1)]
        parts = [self.latent(*scene) for scene in zip(scenes, proprio.split(1), strict=True)]
        return Latent.cat(parts, 0)

    def window_frames(self, history: Latent) -> int:
        """How many frames, the last ones, a rollout that begins with ``history`` goes on from."""
        # A window that slides keeps the length it starts with: the planned path is then of the length seen now.
        return self.config.predictor.history if self.predictor.grows else history.proprio.shape[1]

    def rollout(self, history: Latent, past_actions: Tensor, actions: Tensor) -> Latent:
        """Predict the latents along candidate action sequences; nothing is hidden but the future.

        Args:
            history: slots (B, T, S, D), proprio (B, T, P), oldest first, 1 <= T <= config.predictor.history.
            past_actions: (B, T - 1, A) action blocks taken between those frames, environment units.
            actions: (B, N, H, A) candidate action blocks, environment units.

        Returns:
            Slots (B, N, H, S, D) and proprio (B, N, H, P): the latent after each block.
        """
        batch, candidates, horizon = actions.shape[:3]
        window = history.repeat(candidates)
        blocks = self.processor.action(actions.flatten(0, 1))
        taken = self.processor.action(past_actions).repeat_interleave(candidates, 0)
        frames = self.window_frames(window)
        steps: list[Latent] = []
        for step in range(horizon):
            taken = torch.cat([taken, blocks[:, step : step + 1]], dim=1)[:, -frames:]
            steps.append(self.predictor(window, taken))
            window = Latent.cat([window, steps[-1]], dim=1).select((slice(None), slice(-frames, None)))
        path = Latent.cat(steps, dim=1)
        return Latent(path.slots.unflatten(0, (batch, candidates)), path.proprio.unflatten(0, (batch, candidates)))

    def forecast(
        self,
        history: Latent,
        steps: int,
        hidden: Tensor | None = None,
        given: Latent | None = None,
        known: Tensor | None = None,
    ) -> Latent:
        """Predict how a video goes on, each call from the last T frames, for a model without actions.

        All F frames of a call are predicted, even where fewer are kept or left: they attend to each other, and in
        training there were as many.

        Args:
            history: slots (B, T, S, D), oldest first, and proprio (B, T, 0), 1 <= T <= config.predictor.history.
            steps: frames to predict, ``action_block`` video frames apart like those of the history.
            hidden: (B, T, S) bool, what is hidden of the history in every call; None for nothing.
            given: slots (B, steps, S, D) and proprio (B, steps, 0), read where ``known``.
            known: (B, steps, S) bool, cells that are not predicted: the next call sees the given ones.

        Returns:
            Slots (B, steps, S, D) and proprio (B, steps, 0).

        Raises:
            ValueError: the model takes actions.
        """
        future = self.predictor.future
        if self.config.action_dim:
            raise ValueError(f"this model needs blocks of {self.config.action_dim} actions; use rollout")
        frames = history.slots.shape[1]
        path = history
        while (done := path.slots.shape[1] - frames) < steps:
            window = path.select((slice(None), slice(-frames, None)))
            nothing = window.proprio.new_empty(len(window.proprio), frames + future - 1, 0)
            predicted = self.predictor(window, nothing, hidden, future).select((slice(None), slice(-future, None)))
            predicted = predicted.select((slice(None), slice(0, min(self.keep, steps - done))))
            if given is not None and known is not None:
                now = slice(done, done + predicted.slots.shape[1])
                slots = torch.where(known[:, now, :, None], given.slots[:, now], predicted.slots)
                predicted = predicted._replace(slots=slots)
            path = Latent.cat([path, predicted], dim=1)
        return path.select((slice(None), slice(frames, None)))

    @torch.no_grad()
    def decode(self, latent: Latent, size: int = 64) -> tuple[Tensor, Tensor]:
        """Draw latents (B, ...): frames (B, size, size, 3) uint8 and slot masks (B, S, size, size)."""
        points = grid_coordinates(size).to(latent.slots.device).expand(len(latent.slots), -1, -1)
        painted, masks = self.decoder.paint(self.processor.raw_slots(latent.slots), points)
        frames = (painted.clamp(0, 1) * 255).round().to(torch.uint8).unflatten(1, (size, size))
        return frames, masks.unflatten(2, (size, size))
