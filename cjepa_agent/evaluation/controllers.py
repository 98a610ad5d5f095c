"""What is scored: the agent, and what it should be compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cjepa_agent.agent import CJEPAAgent
from cjepa_agent.planning import PlannerSettings, plan_seed
from envs.pusht.env import PX_PER_ACTION
from envs.pusht.physics import WINDOW, PushTPhysics
from envs.pusht.success import SuccessRule
from planners import ActionPrior, RecedingState

Observations = Sequence[Mapping[str, NDArray[Any]]]
Infos = Sequence[Mapping[str, Any]]
Actions = NDArray[np.float32]
ACTION_DIM = 2


class Controller(Protocol):
    """Acts in several Push-T environments at once; what it remembers of each travels in ``states``.

    Attributes:
        name: for tables.
        target: the planning target, for tables; empty without planning.
    """

    name: str
    target: str

    def begin(self, seeds: Sequence[int]) -> Sequence[Any]:
        """States for the start of episodes, one per seed."""
        ...

    def act(self, observations: Observations, infos: Infos, states: Sequence[Any]) -> tuple[Actions, Sequence[Any]]:
        """Actions (B, 2), and the states after them."""
        ...

    def replans(self, state: Any) -> int:
        """Plans made so far in the episode of ``state``."""
        ...


class AgentController:
    """The agent; it sees observations only, unless its checkpoint is privileged, which its name then tells."""

    def __init__(self, agent: CJEPAAgent) -> None:
        self.agent, self.target = agent, agent.objective.describe()
        system = agent.model.config.title
        self.name = f"{system} (privileged {agent.observes})" if agent.privileged else system

    def begin(self, seeds: Sequence[int]) -> Sequence[Any]:
        """See ``Controller``."""
        return self.agent.begin(seeds)

    def act(self, observations: Observations, infos: Infos, states: Sequence[Any]) -> tuple[Actions, Sequence[Any]]:
        """See ``Controller``."""
        scenes = [{**info, **observation} for observation, info in zip(observations, infos, strict=True)]
        batch = {key: np.stack([scene[key] for scene in scenes]) for key in self.agent.keys}
        return self.agent.predict(batch, state=states)

    def replans(self, state: Any) -> int:
        """See ``Controller``."""
        return int(state.replans)


class RandomController:
    """Uniform over the action space."""

    name, target = "random", ""

    def begin(self, seeds: Sequence[int]) -> Sequence[Any]:
        """See ``Controller``."""
        return [np.random.default_rng(seed) for seed in seeds]

    def act(self, observations: Observations, infos: Infos, states: Sequence[Any]) -> tuple[Actions, Sequence[Any]]:
        """See ``Controller``."""
        return np.stack([rng.uniform(-1, 1, ACTION_DIM) for rng in states]).astype(np.float32), states

    def replans(self, state: Any) -> int:
        """See ``Controller``."""
        return 0


class NoOpController:
    """Stands still."""

    name, target = "no-op", ""

    def begin(self, seeds: Sequence[int]) -> Sequence[Any]:
        """See ``Controller``."""
        return [None] * len(seeds)

    def act(self, observations: Observations, infos: Infos, states: Sequence[Any]) -> tuple[Actions, Sequence[Any]]:
        """See ``Controller``."""
        return np.zeros((len(states), ACTION_DIM), np.float32), states

    def replans(self, state: Any) -> int:
        """See ``Controller``."""
        return 0


@dataclass(frozen=True, eq=False)
class OracleEpisode:
    """Where the oracle stands in an episode.

    Attributes:
        seed: of its plans' noise.
        actions: (k, 2) environment actions yet to execute.
        receding: bookkeeping of receding-horizon control.
        replans: plans made.
    """

    seed: int
    actions: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, ACTION_DIM), np.float32))
    receding: RecedingState = field(default_factory=RecedingState)
    replans: int = 0


class OracleController:
    """The same search with the true simulator as model and the rule's own distances as cost: what is left to gain.

    Plans start from the state, in which a block that is being pushed rests (see ``PushTPhysics``).

    Args:
        prior: action blocks of the training data.
        settings: of the search.
        rule: what is scored.

    Raises:
        ValueError: the search needs a gradient, which the simulator does not have.
    """

    name = "oracle"

    def __init__(self, prior: ActionPrior, settings: PlannerSettings, rule: SuccessRule) -> None:
        if "gradient" in settings.methods:
            raise ValueError(
                f"planner.method={settings.method} cannot search through the true simulator, which has no gradient; "
                f"leave the oracle out with oracle_episodes=0"
            )
        self.settings, self.rule = settings, rule
        self.prior = settings.search_prior(prior).to("cpu")
        self.target = f"true {'agent and block' if rule.uses_agent else 'block'} pose"
        self._physics = PushTPhysics()
        self._search = settings.search(self._cost, self.prior)

    def begin(self, seeds: Sequence[int]) -> Sequence[Any]:
        """See ``Controller``."""
        return [OracleEpisode(seed) for seed in seeds]

    def act(self, observations: Observations, infos: Infos, states: Sequence[Any]) -> tuple[Actions, Sequence[Any]]:
        """See ``Controller``."""
        episodes = [
            episode if len(episode.actions) else self._plan(episode, info)
            for episode, info in zip(states, infos, strict=True)
        ]
        actions = np.stack([episode.actions[0] for episode in episodes])
        return actions, [replace(episode, actions=episode.actions[1:]) for episode in episodes]

    def replans(self, state: Any) -> int:
        """See ``Controller``."""
        return int(state.replans)

    def _plan(self, episode: OracleEpisode, info: Mapping[str, Any]) -> OracleEpisode:
        receding = self.settings.receding
        noise = plan_seed(episode.seed, episode.replans)
        plan = self._search.plan(
            torch.from_numpy(info["state"])[None],
            torch.from_numpy(info["goal_state"])[None],
            horizon=receding.next_horizon(episode.receding),
            generators=[torch.Generator().manual_seed(noise)],
            warm_start=receding.warm_start(episode.receding, self.prior.mean)[None],
        )
        blocks, after = receding.hand_out(episode.receding, plan.actions[0])
        return OracleEpisode(episode.seed, blocks.view(-1, ACTION_DIM).numpy(), after, episode.replans + 1)

    def _cost(self, start: Tensor, goal: Tensor, actions: Tensor) -> Tensor:
        """(1, N): squared errors in units of the rule's thresholds after the last action."""
        ends = np.stack([self._simulate(start[0].numpy(), plan.view(-1, ACTION_DIM).numpy()) for plan in actions[0]])
        distance, angle = self.rule.errors(ends, goal[0].numpy())
        cost = (distance / self.rule.distance) ** 2 + (angle / self.rule.angle) ** 2
        return torch.from_numpy(cost).to(actions.dtype)[None]

    def _simulate(self, state: NDArray[np.float64], actions: NDArray[np.float32]) -> NDArray[np.float64]:
        self._physics.reset(state)
        for action in actions:
            position = np.array(self._physics.agent.position)
            self._physics.step(np.clip(position + np.float32(PX_PER_ACTION) * action, 0.0, WINDOW))
        return self._physics.state()
