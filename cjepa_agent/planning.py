"""Planning in the latent space: what a plan is judged by, and the settings of the search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from cjepa_agent.latent import Latent
from cjepa_agent.matching import LARGEST, match_slots
from cjepa_agent.predictors.released import ReleasedPredictorConfig
from cjepa_agent.world_model import WorldModel, WorldModelConfig
from configs.presets import preset
from planners import (
    CEM,
    ICEM,
    MPPI,
    ActionPrior,
    CEMConfig,
    Chain,
    CostFunction,
    GoalObjective,
    GradientConfig,
    GradientPlanner,
    ICEMConfig,
    MPPIConfig,
    Planner,
    PlanResult,
    RandomShooting,
    RandomShootingConfig,
    RecedingHorizon,
    in_chunks,
)
from planners.protocol import Goal, Z

GRAPHS = 256  # a plan has a population for each of its rounds, and an agent up to five horizons
METHODS: dict[str, Callable[..., Planner[Any, Any]]] = {
    "cem": CEM,
    "icem": ICEM,
    "mppi": MPPI,
    "gradient": GradientPlanner,
    "random": RandomShooting,
}


@dataclass(frozen=True)
class ObjectiveSettings:
    """What it means to be at the goal.

    Attributes:
        objects: slots that count: ``all``, each with the same weight, or the ``block`` alone.
        proprio_weight: weight of the distance in proprioception, 0 leaves the agent free.
        proprio_dims: which numbers of proprioception count, e.g. ``[0,1]`` for position without velocity; null for all.
        path: which steps of a plan count: the ``last``, the ``mean`` of all, or the ``best``.
        matching: compare each goal slot with the predicted slot that fits it best, not with that of the same
            index; needed only where slots swap roles.
    """

    objects: Literal["all", "block"] = "all"
    proprio_weight: float = 1.0
    proprio_dims: tuple[int, ...] | None = None
    path: Literal["last", "mean", "best"] = "last"
    matching: bool = False

    def build(self, config: WorldModelConfig) -> GoalObjective:
        """The objective over the slots of a world model.

        Raises:
            ValueError: the block's slot is asked for but not known, ``matching`` of more than 12 slots,
                ``proprio_dims`` with a predictor that embeds proprioception, or a setting is out of range.
        """
        weights = None
        if self.objects == "block":
            if "block" not in config.roles:
                raise ValueError(
                    f"objective.objects=block needs to know the block's slot, but the checkpoint's roles are "
                    f"{config.roles}; use objects=all, which the preset objectives=all of evaluate does for every rule"
                )
            weights = tuple(float(slot == config.roles["block"]) for slot in range(config.encoder.n_slots))
        elif self.objects != "all":
            raise ValueError(f"objective.objects must be all or block, got {self.objects!r}")
        if self.proprio_dims is not None and isinstance(config.predictor, ReleasedPredictorConfig):
            raise ValueError(
                "objective.proprio_dims picks numbers of proprioception, which this checkpoint's predictor embeds as a "
                "whole; use the preset objectives=all of evaluate, or objective.proprio_dims=null"
            )
        for index in self.proprio_dims or ():
            if index >= config.proprio_dim:
                raise ValueError(f"objective.proprio_dims has {index}; proprioception has {config.proprio_dim} numbers")
        if self.matching and config.encoder.n_slots > LARGEST:
            raise ValueError(
                f"objective.matching takes up to {LARGEST} slots, this checkpoint has {config.encoder.n_slots} tokens "
                "of a frame; tokens of patches keep their place, so compare them without matching"
            )
        match = match_slots if self.matching else None
        return GoalObjective(weights, self.proprio_weight, self.path, match, self.proprio_dims)

    def describe(self) -> str:
        """One line for tables: the planning target."""
        slots = ("all slots" if self.objects == "all" else "block slot") + (" matched" if self.matching else "")
        numbers = "" if self.proprio_dims is None else str(list(self.proprio_dims))
        agent = f" + {self.proprio_weight:g} proprio{numbers}" if self.proprio_weight else ""
        return f"{slots}{agent}, {self.path} step"


BLOCK_ALONE = ObjectiveSettings(objects="block", proprio_weight=0.0)
# Velocities do not count for success, and with the weights of the paper they and the agent outweigh the block: the
# search then settles for plans that bring the agent to its place and leave the block where it is.
BLOCK_AND_POSITION = ObjectiveSettings(objects="block", proprio_weight=0.3, proprio_dims=(0, 1))


@dataclass(frozen=True)
class RuleObjectives:
    """What plans are judged by, for each way of scoring; reported as the planning target.

    Attributes:
        released, moderate: the block's slot and the agent's position, which count for these rules.
        strict: the block alone.
        coverage: the block alone; over the whole path, since nothing says when the goal is due.
    """

    released: ObjectiveSettings = BLOCK_AND_POSITION
    moderate: ObjectiveSettings = BLOCK_AND_POSITION
    strict: ObjectiveSettings = BLOCK_ALONE
    coverage: ObjectiveSettings = ObjectiveSettings(objects="block", proprio_weight=0.0, path="mean")

    @classmethod
    def named(cls, rule: str) -> ObjectiveSettings:
        """That of a rule; raises ValueError for others."""
        known = {field.name: getattr(cls(), field.name) for field in fields(cls)}
        if rule not in known:
            raise ValueError(f"unknown objective {rule!r}; expected ObjectiveSettings or one of {list(known)}")
        settings: ObjectiveSettings = known[rule]
        return settings


@dataclass(frozen=True)
class PlannerSettings:
    """How the agent plans.

    Attributes:
        method: the search: ``cem``, ``icem``, ``mppi``, ``gradient`` or ``random``, or several joined by ``+`` that
            start from each other's plans, e.g. ``cem+gradient``; each has its settings in the field of its name.
        cem, icem, mppi, gradient, random: settings of each search.
        receding: horizon and how often to plan again.
        components: leading principal components of the data's action blocks to search in; None searches all.
        context: most frames of history that a plan starts from, 1 to the predictor's history.
        action_block: environment actions per block; must be the checkpoint's.
        envs_per_call: environments per call of the world model. With 1 an environment's plan on the CPU is the
            same to the last bit alone and in any batch; more are faster on a GPU.
        candidates_per_call: most candidates of each environment per call of the world model, which bounds memory;
            null for all.
        precision: of the world model's matrix products: ``float32``, or ``bfloat16``, which is faster and less exact.
        compile: ``off``; ``kernels`` has torch.compile fuse the world model's kernels, which takes minutes once for
            every new shape; ``graphs`` also replays them as one CUDA graph, which needs a GPU.

    Raises:
        ValueError: a method, precision or way to compile is unknown.
    """

    method: str = "cem"
    cem: CEMConfig = field(default_factory=CEMConfig)
    icem: ICEMConfig = field(default_factory=ICEMConfig)
    mppi: MPPIConfig = field(default_factory=MPPIConfig)
    gradient: GradientConfig = field(default_factory=GradientConfig)
    random: RandomShootingConfig = field(default_factory=RandomShootingConfig)
    receding: RecedingHorizon = field(default_factory=RecedingHorizon)
    components: int | None = None
    context: int = 1
    action_block: int = 5
    envs_per_call: int = 1
    candidates_per_call: int | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: Literal["off", "kernels", "graphs"] = "off"

    def __post_init__(self) -> None:
        unknown = sorted(set(self.methods) - set(METHODS))
        if unknown:
            raise ValueError(f"planner.method is {self.method!r}; expected {list(METHODS)}, or several joined by +")
        for name, known in (("precision", ("float32", "bfloat16")), ("compile", ("off", "kernels", "graphs"))):
            if getattr(self, name) not in known:
                raise ValueError(f"planner.{name} is {getattr(self, name)!r}; expected one of {list(known)}")

    @property
    def methods(self) -> list[str]:
        """The searches that ``method`` names, in order."""
        return self.method.split("+")

    def search(self, cost: CostFunction[Z, Goal], prior: ActionPrior) -> Planner[Z, Goal]:
        """The search for plans of low cost."""
        return Chain(*(METHODS[name](cost, prior, getattr(self, name)) for name in self.methods))

    @classmethod
    def preset(cls, name: str) -> PlannerSettings:
        """The settings of ``configs/planner/<name>.yaml``; raises ValueError with the known names otherwise."""
        return preset(cls, "planner", name)

    def check(self, config: WorldModelConfig) -> None:
        """Raise ValueError where the settings do not fit a world model."""
        if self.action_block != config.action_block:
            raise ValueError(
                f"planner.action_block is {self.action_block}, but the checkpoint was trained with blocks of "
                f"{config.action_block} actions; set planner.action_block={config.action_block}"
            )
        if not 1 <= self.context <= config.predictor.history:
            raise ValueError(
                f"planner.context is {self.context}; this checkpoint takes 1 to {config.predictor.history} frames"
            )

    def search_prior(self, prior: ActionPrior) -> ActionPrior:
        """``prior`` reduced to its leading ``components``.

        Raises:
            ValueError: it has fewer.
        """
        if self.components is None:
            return prior
        if not 1 <= self.components <= prior.latent_dim:
            raise ValueError(f"planner.components is {self.components}; the action prior has {prior.latent_dim}")
        return ActionPrior(prior.mean, prior.basis[:, : self.components].contiguous(), prior.low, prior.high)


def plan_seed(*key: int) -> int:
    """Seed of a plan's noise, mixed from the numbers that identify the plan."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


class PlanStart(NamedTuple):
    """Where plans start.

    Attributes:
        history: latents with (B, T, ...), oldest first.
        taken: (B, T - 1, A) action blocks between those frames, environment units.
    """

    history: Latent
    taken: Tensor


def _allow_graphs(count: int) -> None:
    """Let PyTorch compile a function for so many shapes; beyond its default of 8 it runs them uncompiled."""
    from torch._dynamo import config  # takes seconds, which those who compile nothing need not wait

    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # before PyTorch 2.7
    setattr(config, name, max(count, getattr(config, name)))


class LatentPlanner:
    """Search through the world model toward goal latents.

    Args:
        model: the world model.
        prior: action blocks of the training data.
        settings: of the search.
        objective: what a plan is judged by.

    Raises:
        ValueError: settings, prior or objective do not fit the model or its device.
    """

    def __init__(
        self, model: WorldModel, prior: ActionPrior, settings: PlannerSettings, objective: ObjectiveSettings
    ) -> None:
        settings.check(model.config)
        self.model, self.settings = model, settings
        self.objective = objective.build(model.config)
        self.prior = settings.search_prior(prior)
        cost = in_chunks(self._compiled_cost(), settings.envs_per_call, settings.candidates_per_call)
        self._search = settings.search(cost, self.prior)

    def cost(self, start: PlanStart, goal: Latent, actions: Tensor) -> Tensor:
        """Costs (B, N) of candidate actions (B, N, H, A), environment units, in one call of the world model."""
        reduced = self.settings.precision == "bfloat16"
        with torch.autocast(actions.device.type, torch.bfloat16, enabled=reduced):
            path = self.model.rollout(start.history, start.taken, actions)
        return self.objective(path.slots, path.proprio, goal.slots, goal.proprio)

    def _compiled_cost(self) -> CostFunction[PlanStart, Latent]:
        if self.settings.compile == "off":
            return self.cost
        _allow_graphs(GRAPHS)
        if self.settings.compile == "kernels":
            return torch.compile(self.cost)
        if self.prior.device.type != "cuda":
            raise ValueError(
                f"planner.compile=graphs needs a CUDA device, but the planner is on {self.prior.device}; "
                f"use planner.compile=kernels or off"
            )
        graph = torch.compile(self.cost, mode="reduce-overhead")
        # A copy, since the next replay writes its answer to the same memory.
        return lambda start, goal, actions: graph(start, goal, actions).clone()

    def plan(self, start: PlanStart, goal: Latent, horizon: int, seeds: list[int], warm_start: Tensor) -> PlanResult:
        """Plan for B environments.

        Args:
            start: where they are.
            goal: slots (B, S, D) and proprio (B, P).
            horizon: H, action blocks.
            seeds: one per environment, of the search's noise.
            warm_start: (B, H, A) environment units.
        """
        generators = [Generator().manual_seed(seed) for seed in seeds]
        return self._search.plan(start, goal, horizon=horizon, generators=generators, warm_start=warm_start)
