"""The planners that ``benchmarks.planning`` compares: the same scenes, network and settings, different ways."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from gymnasium.spaces import Box
from scipy.optimize import linear_sum_assignment
from torch import Generator, Tensor

from cjepa_agent.checkpoint import Checkpoint
from cjepa_agent.encoders.kinds import EncoderConfig
from cjepa_agent.evaluation.session import make_env
from cjepa_agent.interop.stable_worldmodel import Costable
from cjepa_agent.latent import Latent
from cjepa_agent.matching import pairwise_errors
from cjepa_agent.planning import LatentPlanner, ObjectiveSettings, PlannerSettings, PlanStart
from cjepa_agent.predictors.cjepa import PredictorConfig
from cjepa_agent.predictors.oc_dino_wm import OCDINOWMConfig
from cjepa_agent.world_model import WorldModel, WorldModelConfig
from configs.presets import preset
from planners import ActionPrior

PATCHES, PATCH_WIDTH = 196, 384  # tokens of a frame in DINO-WM, and numbers of each


class Scenes(NamedTuple):
    """What B environments show at the start of an episode, on the host.

    Attributes:
        frames, goal_frames: (B, H, W, 3) uint8.
        proprio, goal_proprio: (B, P) float32.
    """

    frames: Tensor
    proprio: Tensor
    goal_frames: Tensor
    goal_proprio: Tensor

    @classmethod
    def make(cls, count: int, seed: int) -> Scenes:
        """Random starts and goals of Push-T."""
        env = make_env(task="goal_state")
        seen = [env.reset(seed=seed + index)[0] for index in range(count)]
        env.close()
        keys = ("pixels", "proprio", "goal_pixels", "goal_proprio")
        return cls(*(torch.from_numpy(np.stack([observation[key] for observation in seen])) for key in keys))

    def select(self, index: slice) -> Scenes:
        """Some of the environments."""
        return Scenes(*(part[index] for part in self))

    def to(self, device: torch.device) -> Scenes:
        """A copy on the device."""
        return Scenes(*(part.to(device) for part in self))

    def encode(self, model: WorldModel) -> tuple[PlanStart, Latent]:
        """Where plans start, and their goals; the scenes must be on the model's device."""
        start = model.encode(self.frames, self.proprio)
        goal = model.encode(self.goal_frames, self.goal_proprio, start.slots)
        history = Latent(start.slots.unsqueeze(1), start.proprio.unsqueeze(1))
        return PlanStart(history, self.proprio.new_empty(len(self.proprio), 0, model.config.action_dim)), goal


class Contender(Protocol):
    """A way to plan."""

    def solve(self, scenes: Scenes, horizon: int, seeds: Sequence[int]) -> Tensor:
        """Action blocks (B, H, A) for B scenes on the host, encoding included."""
        ...


class Ours:
    """All environments and candidates in one batch, encoded once.

    Args:
        checkpoint: network and action prior.
        settings, objective: of the search.
        device: where it runs.
    """

    def __init__(
        self, checkpoint: Checkpoint, settings: PlannerSettings, objective: ObjectiveSettings, device: torch.device
    ) -> None:
        self.device, self.model = device, checkpoint.model.to(device)
        self.planner = LatentPlanner(self.model, checkpoint.action_prior.to(device), settings, objective)

    @torch.no_grad()
    def solve(self, scenes: Scenes, horizon: int, seeds: Sequence[int]) -> Tensor:
        """See ``Contender``."""
        start, goal = scenes.to(self.device).encode(self.model)
        warm_start = self.planner.prior.mean.expand(len(seeds), horizon, -1)
        return self.planner.plan(start, goal, horizon, list(seeds), warm_start).actions


class Published:
    """The published way: an environment at a time, slots assigned on the host candidate by candidate.

    Every cost call uploads a picture of start and goal for each candidate. After every predicted step, and against
    the goal, the errors between slots go to the host for each candidate, and the assignment comes back.

    Args:
        checkpoint, settings, objective, device: as for ``Ours``; compilation, precision and chunks do not apply.
        reencode: encode start and goal again in every cost call, as DINO-WM does, not once per solve, as C-JEPA does.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: PlannerSettings,
        objective: ObjectiveSettings,
        device: torch.device,
        reencode: bool = False,
    ) -> None:
        self.device, self.reencode, self.model = device, reencode, checkpoint.model.to(device)
        self.objective = replace(objective.build(self.model.config), match=match_on_host)
        self.prior = settings.search_prior(checkpoint.action_prior.to(device))
        self._search = settings.search(self.cost, self.prior)
        self._encoded: tuple[Scenes, PlanStart, Latent] | None = None

    @torch.no_grad()
    def solve(self, scenes: Scenes, horizon: int, seeds: Sequence[int]) -> Tensor:
        """See ``Contender``."""
        plans = []
        for index, seed in enumerate(seeds):
            scene = scenes.select(slice(index, index + 1))
            generators = [Generator().manual_seed(seed)]
            plans.append(self._search.plan(scene, None, horizon=horizon, generators=generators).actions)
        return torch.cat(plans)

    def cost(self, scene: Scenes, goal: None, actions: Tensor) -> Tensor:
        """Costs (1, N) of candidates (1, N, H, A) for one scene."""
        candidates = actions[0]
        copies = Scenes(*(part.expand(len(candidates), *part.shape[1:]) for part in scene)).to(self.device)
        if self.reencode or self._encoded is None or self._encoded[0] is not scene:
            self._encoded = (scene, *copies.select(slice(1)).encode(self.model))
        _, start, goal_latent = self._encoded
        window, taken = start.history.repeat(len(candidates)), start.taken.repeat(len(candidates), 1, 1)
        frames = self.model.window_frames(window)
        steps = []
        for block in candidates.split(1, dim=1):
            predicted = self.model.rollout(window, taken, block.unsqueeze(1)).select((slice(None), 0))
            order = match_on_host(predicted.slots[:, 0], window.slots[:, -1])
            slots = predicted.slots.take_along_dim(order[:, None, :, None], dim=2)
            steps.append(Latent(slots, predicted.proprio))
            window = Latent.cat([window, steps[-1]], dim=1).select((slice(None), slice(-frames, None)))
            taken = torch.cat([taken, block], dim=1)
            taken = taken[:, taken.shape[1] + 1 - window.proprio.shape[1] :]
        path = Latent.cat(steps, dim=1)
        return self.objective(path.slots[None], path.proprio[None], goal_latent.slots, goal_latent.proprio)


def match_on_host(source: Tensor, target: Tensor) -> Tensor:
    """As ``cjepa_agent.matching.match_slots``, by scipy, one pair of sets after the other."""
    errors = pairwise_errors(source, target)
    orders = [linear_sum_assignment(pair.cpu().numpy().T)[1] for pair in errors.flatten(0, -3)]
    return torch.from_numpy(np.stack(orders)).to(source.device).view(errors.shape[:-1])


class StableWorldModel:
    """stable-worldmodel's ``CEMSolver`` with the same network; see ``Costable``.

    Args:
        checkpoint, settings, objective, device: as for ``Ours``; of the settings those of ``cem`` that it knows count.

    Raises:
        ImportError: stable-worldmodel is not installed.
    """

    def __init__(
        self, checkpoint: Checkpoint, settings: PlannerSettings, objective: ObjectiveSettings, device: torch.device
    ) -> None:
        from stable_worldmodel.solver import CEMSolver

        self._solver, self._device, self._settings = CEMSolver, device, settings
        self._model = checkpoint.model.to(device)
        self._costable = Costable(LatentPlanner(self._model, checkpoint.action_prior.to(device), settings, objective))

    @torch.no_grad()
    def solve(self, scenes: Scenes, horizon: int, seeds: Sequence[int]) -> Tensor:
        """See ``Contender``; one seed serves all environments."""
        config, cem = self._model.config, self._settings.cem
        solver = self._solver(
            model=self._costable,
            batch_size=self._settings.envs_per_call,
            num_samples=cem.n_samples,
            var_scale=cem.init_std,
            n_steps=cem.n_iterations,
            topk=cem.n_elites,
            device=self._device,
            seed=seeds[0],
        )
        space = Box(-1, 1, (len(seeds), config.env_action_dim))
        plan = SimpleNamespace(horizon=horizon, action_block=config.action_block)
        solver.configure(action_space=space, n_envs=len(seeds), config=plan)
        names = ("pixels", "proprio", "goal", "goal_proprio")
        with contextlib.redirect_stdout(io.StringIO()):
            found: Tensor = solver.solve(dict(zip(names, scenes, strict=True)))["actions"]
        return self._costable.decode(found.to(self._device))


def random_network(config: WorldModelConfig, prior: ActionPrior, seed: int) -> Checkpoint:
    """A network of the given sizes with random weights, to time it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = WorldModel(config).eval()
        for parameter in model.predictor.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)  # heads of zeros would make all plans cost the same
    return Checkpoint(model, prior, {"data": "none, random weights"})


def paper_network(checkpoint: Checkpoint, seed: int) -> Checkpoint:
    """The paper's predictor with random weights on the checkpoint's encoder sizes."""
    predictor = preset(PredictorConfig, "predictor", "paper")
    return random_network(replace(checkpoint.model.config, predictor=predictor), checkpoint.action_prior, seed)


def dino_wm(config: WorldModelConfig) -> WorldModelConfig:
    """DINO-WM at its published size in place of another world model."""
    encoder = EncoderConfig(n_slots=PATCHES, slot_dim=PATCH_WIDTH)
    predictor = replace(preset(OCDINOWMConfig, "predictor", "oc_dino_wm_paper"), width=PATCH_WIDTH)
    return replace(config, encoder=encoder, predictor=predictor, roles={})


def patch_network(checkpoint: Checkpoint, seed: int) -> Checkpoint:
    """DINO-WM at its published size with random weights."""
    return random_network(dino_wm(checkpoint.model.config), checkpoint.action_prior, seed)
