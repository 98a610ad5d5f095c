"""The agent: raw observations in, environment actions out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cjepa_agent.checkpoint import Checkpoint
from cjepa_agent.encoders.base import VideoEncoder
from cjepa_agent.latent import Latent
from cjepa_agent.planning import LatentPlanner, ObjectiveSettings, PlannerSettings, PlanStart, RuleObjectives, plan_seed
from cjepa_agent.tensors import require_device
from envs.window import check_picture
from planners import RecedingState

Arrays = tuple[NDArray[Any], ...]
Observation = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Imagination:
    """What the agent expects of a plan, drawn by the decoder.

    Attributes:
        frames: (H, size, size, 3) uint8, one per action block.
        masks: (H, S, size, size) float32, share of each pixel that each slot takes; sums to 1 over slots.
    """

    frames: NDArray[np.uint8]
    masks: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Episode:
    """Where the agent stands in one episode; never changed, only replaced.

    Attributes:
        key: numbers that seed the episode's plans, see ``CJEPAAgent``; the last one counts episodes.
        goal: its latent, without leading axes; None before the first observation.
        goal_inputs: observed goal and goal_proprio that ``goal`` was encoded from.
        history: latents of real frames at block boundaries, oldest first, at most ``context``.
        taken: (A,) action blocks between those frames.
        blocks: (k, A) action blocks to execute.
        step: environment actions executed of them.
        receding: bookkeeping of receding-horizon control.
        start: where the last plan started.
        plan: (H, A) the last plan, None before the first.
        replans: plans made.
    """

    key: tuple[int, ...]
    goal: Latent | None = None
    goal_inputs: Arrays = ()
    history: tuple[Latent, ...] = ()
    taken: tuple[Tensor, ...] = ()
    blocks: Tensor | None = None
    step: int = 0
    receding: RecedingState = field(default_factory=RecedingState)
    start: PlanStart | None = None
    plan: Tensor | None = None
    replans: int = 0

    def restarted(self) -> Episode:
        """The next episode of the same environment; an unused one stays as it is."""
        return self if self.goal is None else Episode((*self.key[:-1], self.key[-1] + 1))

    def has_goal(self, inputs: Arrays) -> bool:
        """Whether ``goal`` was encoded from these."""
        return len(self.goal_inputs) == len(inputs) and all(map(np.array_equal, self.goal_inputs, inputs))


class CJEPAAgent:
    """Plans with a world model; follows Stable-Baselines3's policy protocol.

    Every random number of a plan comes from the agent's seed, the environment's index, the number of the episode in
    that environment and the number of the plan in the episode. A result therefore never depends on which other
    environments share the batch; on the CPU (with ``planner.envs_per_call=1``) it is the same to the last bit.

    An episode begins with a new goal. Where it begins otherwise, as when an environment is reset to the goal that it
    had, give ``predict`` ``episode_start`` or call ``reset``: the plan of the episode before is else carried out.

    Args:
        checkpoint: world model and action prior; the model is moved to ``device`` itself, not a copy of it.
        planner: settings, or the name of a preset.
        objective: what a plan is judged by, or the rule that success is judged by: ``released``, ``moderate``,
            ``strict`` or ``coverage``. None for the paper's: all slots and all of proprioception.
        device: where to encode and plan.
        seed: 0 or more.

    Attributes:
        observes: what the checkpoint's encoder sees of a scene: pixels, or the state.
        keys: what the agent needs of an observation: that and proprioception, now and at the goal.
        privileged: whether it plans from what an agent cannot see, the simulator's true state.

    Raises:
        ValueError: planner or objective do not fit the checkpoint, or there is no such device.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        planner: PlannerSettings | str = "fast",
        objective: ObjectiveSettings | str | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        if not isinstance(seed, int | np.integer) or seed < 0:
            raise ValueError(f"seed is {seed!r}; expected a whole number, 0 or more")
        require_device(str(device))
        self.checkpoint, self.device, self.seed = checkpoint, torch.device(device), seed
        self.settings = PlannerSettings.preset(planner) if isinstance(planner, str) else planner
        named = RuleObjectives.named(objective) if isinstance(objective, str) else objective
        self.objective = named or ObjectiveSettings()
        for value, kind in ((self.settings, PlannerSettings), (self.objective, ObjectiveSettings)):
            if not isinstance(value, kind):
                raise ValueError(f"expected {kind.__name__} or the name of one, got {value!r}")
        self.model = checkpoint.model.to(self.device).eval()
        self.observes, self.privileged = self.model.encoder.observes, self.model.encoder.privileged
        self.keys = (self.observes, "proprio", f"goal_{self.observes}", "goal_proprio")
        prior = checkpoint.action_prior.to(self.device)
        self._planner = LatentPlanner(self.model, prior, self.settings, self.objective)
        self._episodes: tuple[Episode, ...] = ()

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path | None = None,
        planner: PlannerSettings | str = "fast",
        objective: ObjectiveSettings | str | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
        revision: str | None = None,
        token: str | None = None,
    ) -> CJEPAAgent:
        """Load a checkpoint: a folder, a Hub id (at ``revision``, with ``token``), or the bundled one if not given.

        Other arguments and errors are those of the class and of ``Checkpoint.from_pretrained``.
        """
        checkpoint = Checkpoint.from_pretrained(name_or_path, revision=revision, token=token)
        return cls(checkpoint, planner, objective, device, seed)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the checkpoint; see ``Checkpoint.save_pretrained``."""
        self.checkpoint.save_pretrained(folder)

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload the checkpoint; see ``Checkpoint.push_to_hub``."""
        return self.checkpoint.push_to_hub(repo_id, private=private, token=token)

    def check_env(self, env: Any) -> None:
        """Raise ValueError unless the agent can act in ``env``, a Gymnasium or vectorised environment."""
        observations = getattr(env, "single_observation_space", env.observation_space)
        actions = getattr(env, "single_action_space", env.action_space)
        config = self.model.config
        if not isinstance(observations, gym.spaces.Dict) or not set(self.keys) <= set(observations.spaces):
            advice = self.model.encoder.advice
            raise ValueError(f"the agent needs observations with {list(self.keys)}, got {observations}; {advice}")
        for key in self.keys:
            space, encoder = observations.spaces[key], self.model.encoder
            if key.endswith("proprio"):
                fits, expected = space.shape == (config.proprio_dim,), f"({config.proprio_dim},)"
            else:
                fits, expected = encoder.accepts(space.shape or (), str(space.dtype)), encoder.form
            if not fits:
                raise ValueError(f"the agent needs {key} as {expected}, the environment gives {space}")
        prior = self.checkpoint.action_prior
        limits = [bound.cpu().numpy()[: config.env_action_dim] for bound in (prior.low, prior.high)]
        fits = isinstance(actions, gym.spaces.Box) and actions.shape == (config.env_action_dim,)
        if not fits or not (np.array_equal(actions.low, limits[0]) and np.array_equal(actions.high, limits[1])):
            raise ValueError(
                f"the agent acts in Box({limits[0].tolist()}, {limits[1].tolist()}), the environment in {actions}; "
                f"make it with control='relative'"
            )

    def reset(self) -> None:
        """Forget all episodes; episode counts start again, so that results repeat."""
        self._episodes = ()

    def begin(self, seeds: Sequence[int]) -> tuple[Episode, ...]:
        """Fresh episodes with seeds of their own, one per environment, to pass to ``predict`` as ``state``."""
        if any(seed < 0 for seed in seeds):
            raise ValueError(f"seeds are {list(seeds)}; expected 0 or more")
        return tuple(Episode((seed, 0)) for seed in seeds)

    def predict(
        self,
        observation: Observation,
        state: Sequence[Episode] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[np.float32], tuple[Episode, ...]]:
        """Act.

        Args:
            observation: of ``PushT-v0`` with ``obs_type="goal"``, with or without a leading environment axis: pixels
                uint8 (H, W, 3) of any size, proprio (P,), goal_pixels, goal_proprio. A privileged checkpoint
                (``encoder.kind=state``) needs state (7,) and goal_state in place of the pictures.
            state: what the last call returned, or ``begin``'s; None goes on where the agent's last call left off,
                from new episodes if the number of environments has changed.
            episode_start: (B,) True where a new episode starts. A new goal starts one, too.
            deterministic: no effect; given the seed, plans are always deterministic.

        Returns:
            Actions float32 (2,) or (B, 2) within the environment's bounds, and the new state.

        Raises:
            ValueError: the observation or the state does not fit.
        """
        inputs, single = self._read(observation)
        n_envs = len(inputs["proprio"])
        episodes = self._resume(n_envs, state, episode_start)
        goals: list[Arrays] = [(inputs[self.keys[2]][i], inputs["goal_proprio"][i]) for i in range(n_envs)]
        episodes = [e if e.has_goal(g) else e.restarted() for e, g in zip(episodes, goals, strict=True)]
        self._see_frames(episodes, inputs)
        self._see_goals(episodes, goals)
        self._replan(episodes)
        actions = np.stack([self._next_action(episode) for episode in episodes])
        self._episodes = tuple(replace(episode, step=episode.step + 1) for episode in episodes)
        return (actions[0] if single else actions), self._episodes

    def imagination(self, env: int = 0, state: Sequence[Episode] | None = None, size: int = 64) -> Imagination:
        """How the last plan of environment ``env`` is expected to look after each of its blocks.

        Args:
            env: index of the environment.
            state: what ``predict`` returned; None means that of its last call.
            size: px of the pictures' sides.

        Raises:
            ValueError: no plan has been made yet, or there are no pictures of that size.
        """
        check_picture(size=size)
        episodes = self._episodes if state is None else state
        start, plan = (episodes[env].start, episodes[env].plan) if 0 <= env < len(episodes) else (None, None)
        if start is None or plan is None:
            raise ValueError(f"there is no plan yet for environment {env}; call predict first")
        with torch.no_grad():
            path = self.model.rollout(start.history, start.taken, plan[None, None])
            frames, masks = self.model.decode(path.select((0, 0)), size)
        return Imagination(frames.cpu().numpy(), masks.cpu().numpy())

    def _read(self, observation: Observation) -> tuple[dict[str, NDArray[Any]], bool]:
        """Arrays with a leading environment axis, and whether it had to be added."""
        encoder, keys = self.model.encoder, self.keys
        if not isinstance(observation, Mapping) or not set(keys) <= set(observation):
            found = sorted(observation) if isinstance(observation, Mapping) else type(observation).__name__
            raise ValueError(f"the agent needs a dict of {list(keys)}, got {found}; {encoder.advice}")
        arrays = {key: np.asarray(observation[key]) for key in keys}
        single = arrays["proprio"].ndim < 2
        if single:
            arrays = {key: value[None] for key, value in arrays.items()}
        n_envs, width = len(arrays["proprio"]), self.model.config.proprio_dim
        if n_envs == 0:
            raise ValueError("the observation is of 0 environments; expected one or more")
        for key, value in arrays.items():
            proprio = key.endswith("proprio")
            accepts = value.dtype.kind in "fiu" and value.shape[1:] == (width,)
            fits = accepts if proprio else encoder.accepts(value.shape[1:], value.dtype.name) and 0 not in value.shape
            if value.shape[:1] != (n_envs,) or not fits:
                expected = f"({width},)" if proprio else encoder.form
                raise ValueError(f"{key} is {value.dtype} {value.shape} for {n_envs} environments; expected {expected}")
            with np.errstate(over="ignore"):  # told below
                read = value.astype(np.float32) if value.dtype.kind == "f" else value
            finite = np.isfinite(read).reshape(n_envs, -1).all(1)
            if not finite.all():
                raise ValueError(
                    f"{key} has NaN or numbers too large for float32 in environments {np.flatnonzero(~finite).tolist()}"
                )
        return arrays, single

    def _resume(
        self, n_envs: int, state: Sequence[Episode] | None, episode_start: NDArray[np.bool_] | None
    ) -> list[Episode]:
        episodes = list(self._episodes if state is None else state)
        if not all(isinstance(episode, Episode) for episode in episodes):
            raise ValueError("state must be what predict or begin returned, one Episode per environment")
        if len(episodes) != n_envs:
            if state is not None:
                raise ValueError(f"state holds {len(episodes)} episodes for {n_envs} environments")
            episodes = [Episode((self.seed, env, 0)) for env in range(n_envs)]
        if episode_start is None:
            return episodes
        starts = np.atleast_1d(episode_start)
        if starts.shape != (n_envs,):
            raise ValueError(f"episode_start has shape {starts.shape} for {n_envs} environments")
        return [e.restarted() if start else e for e, start in zip(episodes, starts, strict=True)]

    def _see_goals(self, episodes: list[Episode], goals: list[Arrays]) -> None:
        # Where slots can start from those of another frame, the goal's start from those that a plan starts with.
        carried = isinstance(self.model.encoder, VideoEncoder)
        new = [i for i, e in enumerate(episodes) if e.goal is None or (carried and self._needs_plan(e))]
        initial = [episodes[i].history[-1].slots for i in new] if carried else None
        latents = self._encode([goals[i][0] for i in new], [goals[i][1] for i in new], initial)
        for i, latent in zip(new, latents, strict=True):
            # Copies, since vectorised environments write the next observation into the same arrays.
            episodes[i] = replace(episodes[i], goal=latent, goal_inputs=tuple(part.copy() for part in goals[i]))

    def _see_frames(self, episodes: list[Episode], inputs: dict[str, NDArray[Any]]) -> None:
        """Add the current frame to the history of the environments that are at a block boundary."""
        due = [i for i, episode in enumerate(episodes) if self._needs_frame(episode)]
        context = self.settings.context
        # A slot must hold the same object in all frames of a history, which slots that are carried along do.
        carried = context > 1 and isinstance(self.model.encoder, VideoEncoder)
        later = [i for i in due if carried and episodes[i].history]
        for members in ([i for i in due if i not in later], later):
            initial = [episodes[i].history[-1].slots for i in members] if members is later else None
            observed, proprio = ([inputs[key][i] for i in members] for key in (self.observes, "proprio"))
            for i, latent in zip(members, self._encode(observed, proprio, initial), strict=True):
                episode, taken = episodes[i], episodes[i].taken
                if episode.blocks is not None:
                    taken = (*taken, episode.blocks[episode.step // self.settings.action_block - 1])
                history = (*episode.history, latent)[-context:]
                episodes[i] = replace(episode, history=history, taken=taken[len(taken) - len(history) + 1 :])

    def _needs_frame(self, episode: Episode) -> bool:
        if self._needs_plan(episode):
            return True
        return self.settings.context > 1 and episode.step % self.settings.action_block == 0

    def _needs_plan(self, episode: Episode) -> bool:
        return episode.blocks is None or episode.step == len(episode.blocks) * self.settings.action_block

    def _encode(
        self, observed: list[NDArray[Any]], proprio: list[NDArray[Any]], initial: list[Tensor] | None = None
    ) -> list[Latent]:
        if not observed:
            return []
        latent = self.model.encode(
            torch.from_numpy(np.stack(observed)).to(self.device),
            torch.from_numpy(np.stack(proprio).astype(np.float32)).to(self.device),
            None if initial is None else torch.stack(initial),
        )
        return [latent.select(i) for i in range(len(observed))]

    def _replan(self, episodes: list[Episode]) -> None:
        """Plan for all environments that need it, those alike in horizon and history in one batch."""
        groups: dict[tuple[int, int], list[int]] = {}
        for i, episode in enumerate(episodes):
            if self._needs_plan(episode):
                horizon = self.settings.receding.next_horizon(episode.receding)
                groups.setdefault((horizon, len(episode.history)), []).append(i)
        for (horizon, _), members in groups.items():
            self._plan_group(episodes, members, horizon)

    def _plan_group(self, episodes: list[Episode], members: list[int], horizon: int) -> None:
        receding, prior = self.settings.receding, self._planner.prior
        chosen = [episodes[i] for i in members]
        starts = [self._start_of(episode) for episode in chosen]
        start = PlanStart(Latent.cat([s.history for s in starts], dim=0), torch.cat([s.taken for s in starts]))
        goal = Latent.cat([_single(e.goal) for e in chosen if e.goal is not None], dim=0)
        warm_start = torch.stack([receding.warm_start(e.receding, prior.mean) for e in chosen])
        seeds = [plan_seed(*episode.key, episode.replans) for episode in chosen]
        plans = self._planner.plan(start, goal, horizon, seeds, warm_start).actions
        for i, episode, begun, plan in zip(members, chosen, starts, plans, strict=True):
            blocks, after = receding.hand_out(episode.receding, plan)
            episodes[i] = replace(
                episode, blocks=blocks, step=0, receding=after, start=begun, plan=plan, replans=episode.replans + 1
            )

    def _start_of(self, episode: Episode) -> PlanStart:
        history = Latent.cat([_single(_single(latent)) for latent in episode.history], dim=1)
        if not episode.taken:
            return PlanStart(history, history.proprio.new_empty(1, 0, self._planner.prior.action_dim))
        return PlanStart(history, torch.stack(episode.taken).unsqueeze(0))

    def _next_action(self, episode: Episode) -> NDArray[np.float32]:
        if episode.blocks is None:
            raise RuntimeError("an episode without a plan was asked for an action")
        block, within = divmod(episode.step, self.settings.action_block)
        action: NDArray[np.float32] = episode.blocks[block].view(self.settings.action_block, -1)[within].cpu().numpy()
        return action.copy()


def _single(latent: Latent) -> Latent:
    """With a leading axis of one."""
    return Latent(latent.slots.unsqueeze(0), latent.proprio.unsqueeze(0))
