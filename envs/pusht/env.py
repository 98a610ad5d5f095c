"""The Gymnasium environment ``PushT-v0``."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from envs.pusht import observations
from envs.pusht.options import GOAL_POSE, ResetOptions
from envs.pusht.physics import WINDOW, PushTPhysics, block_shape
from envs.pusht.render import PushTRenderer, Style
from envs.pusht.sampling import clear_of_block, sample_goal, sample_start
from envs.pusht.success import SuccessCounter, angle_error
from envs.pusht.success import success_rule as find_rule
from envs.window import Window, check_picture

TASKS = ("coverage", "goal_state")
COVERAGE_THRESHOLD = 0.95
PX_PER_ACTION = 100.0
CONTACTS_DIVISOR = 1000  # gym-pusht divides a step's contact points by this number and rounds up
MARKER = (255, 0, 0)  # colour of the cross at the last target


class PushTEnv(gym.Env[Any, NDArray[np.float32]]):
    r"""Push a block over a plane to where it should be.

    ## Description

    A disc, the agent, moves freely over a square of 512 x 512 px with walls at 5 and 506 px; x points right, y
    down. A T-shaped block lies in the plane and moves only while it is pushed. The agent follows a target with a PD
    controller (gains 100 and 20); every action lasts 0.1 s (10 physics steps).

    There are two tasks. In `task="coverage"` the block must cover the green goal outline. In `task="goal_state"`
    a full state must be reached, given as numbers and as an image; this is the protocol of DINO-WM, LeWM and C-JEPA.

    Physics, random starts and looks are those of `gym_pusht/PushT-v0` 0.1.8: equal states and equal absolute
    actions give equal trajectories. Unlike there, `reset` gives exactly the state that was asked for, and in random
    starts the agent is never inside the block.

    ## Action Space

    | `control` | action space | target of the agent |
    | --- | --- | --- |
    | `relative` (default) | `Box(-1, 1, (2,), float32)` | agent position + 100 px x action |
    | `absolute` | `Box(0, 512, (2,), float32)` | the action [px] |

    Actions outside the space are clipped to it, and relative targets to the arena (0..512 px), so that no action
    takes the agent out of the picture. A wrong shape or a NaN raises `ValueError`.

    ## Observation Space

    Images are `uint8` RGB of `observation_height` x `observation_width`, by default 96 x 96.

    | `obs_type` | observation | unit and range |
    | --- | --- | --- |
    | `goal` (default) | dict of `pixels` (H, W, 3), `proprio` float32 (4,), `goal_pixels`, `goal_proprio` | `proprio`: agent x, y [0..512 px], vx, vy [+-5120 px/s] |
    | `state` | float64 (5,): agent x, y, block x, y, block angle | 0..512 px, 0..2 pi rad |
    | `environment_state_agent_pos` | dict of `environment_state` float64 (16,), the 8 corners of the block's two boxes, and `agent_pos` (2,) | 0..512 px |
    | `pixels` | image (H, W, 3) | 0..255 |
    | `pixels_agent_pos` | dict of `pixels` and `agent_pos` float64 (2,) | 0..255, 0..512 px |

    All but the first are gym-pusht's, but that numbers are clipped to their range: hard pushes can squeeze the block
    into a wall and its origin a few px beyond the arena. `info` has them as they are. `goal_pixels` is the picture of the goal state, with the agent in it. In the
    coverage task, which asks nothing of the agent, the goal state's agent is the start's at rest, moved just clear
    of the block at its goal where it would overlap.

    `info` carries, at every step and reset:

    | key | meaning |
    | --- | --- |
    | `state` | (7,) agent x, y, block x, y [px], block angle [rad, not wrapped], agent vx, vy [px/s] |
    | `goal_state` | (7,) the same for the goal |
    | `block_pose`, `goal_pose` | (3,) x, y [px], angle [rad] of the block and of the drawn green goal |
    | `pos_agent`, `vel_agent` | (2,) [px], [px/s] |
    | `coverage` | covered share of the green goal's area, 0..1 |
    | `is_success` | bool, see below; always False at reset |
    | `n_contacts` | int, gym-pusht's count: contact points of the step / 1000, rounded up |
    | `segmentation` | (H, W) uint8, only with `segmentation=True`: 0 background, 1 goal, 2 block, 3 agent |

    ## Rewards

    * `coverage`: `clip(coverage / 0.95, 0, 1)`.
    * `goal_state`: minus the mean of the rule's distance / 512 px and angle error / largest possible one (180
      degrees for the T), each at most 1: in [-1, 0], and 0 exactly at the goal.

    ## Success Criteria

    * `coverage`: more than 95 % of the green goal is covered.
    * `goal_state`: one of the published rules, of which `moderate` equals `released` (`envs.pusht.success`).

    | `success_rule` | distance | angle | held for |
    | --- | --- | --- | --- |
    | `released` (default), `moderate` | agent and block jointly (4 numbers) < 20 px | < 20 degrees | 1 step |
    | `strict` | block alone < 10 px | < 10 degrees | 3 consecutive steps |

    Angles count modulo the symmetry of the block (a square: 90 degrees).

    ## Starting State

    Agent x, y are whole numbers from 50..449; the block is put at whole x, y from 100..399 and then turned about its
    centre of gravity by an angle from [-pi, pi); all uniform, at rest, drawn again while the agent overlaps the
    block or the block a wall. In the `goal_state` task the goal is drawn near the start: block 20..80 px away and
    turned by up to 45 degrees, agent up to 100 px away per axis, not yet reached.

    ## Episode Termination

    The episode terminates on success. `gym.make` truncates it after 300 steps.

    ## Arguments

    ```python
    >>> import gymnasium as gym
    >>> import envs
    >>> env = gym.make("PushT-v0", task="goal_state", success_rule="strict", render_mode="rgb_array")
    >>> observation, info = env.reset(seed=0)
    >>> sorted(observation)
    ['goal_pixels', 'goal_proprio', 'pixels', 'proprio']
    >>> observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
    >>> env.render().shape
    (680, 680, 3)

    ```

    * `obs_type`: one of the table above, default `goal`.
    * `control`: `relative` (default) or `absolute`.
    * `task`: `coverage` (default) or `goal_state`.
    * `success_rule`: `released` (default), `moderate` or `strict`; used by the `goal_state` task.
    * `render_mode`: `rgb_array`, `human` or None (default).
    * `observation_width`, `observation_height`: px, default 96.
    * `visualization_width`, `visualization_height`: px, default 680, the size of `render()`.
    * `segmentation`: add `info["segmentation"]`, default False.

    ## Reset Arguments

    `reset(options=...)` takes a dict with any of these keys; anything invalid raises `ValueError`.

    * `state`: 5 or 7 numbers in the order of `info["state"]`, any angle; given back exactly.
    * `goal_state`: 5 or 7 numbers. In the `coverage` task its block pose becomes the goal pose.
    * `goal_pose`: x, y [px], angle [rad] of the green goal, default (256, 256, pi / 4). In the `goal_state` task it
      is decoration: as in the published protocol, the green goal stays where it is and has nothing to do with the
      goal state.
    * `variation`: a dict of `background_color`, `goal_color`, `block_color`, `agent_color`, `wall_color` (RGB
      0..255), `shape` (`T`, `small_tee`, `L`, `Z`, `square`, `I`, `+`, or `tee`, `ell`, `zee`, `bar`, `plus`),
      `scale` (10..50 px, default 30) and `agent_radius` (5..40 px, default 15). It lasts for one episode.

    ```python
    >>> start, goal = [100, 200, 256, 256, 7.0], [200, 200, 300, 256, 7.5]
    >>> observation, info = env.reset(options={"state": start, "goal_state": goal})
    >>> info["state"].round(9).tolist()
    [100.0, 200.0, 256.0, 256.0, 7.0, 0.0, 0.0]
    >>> observation, info = env.reset(seed=1, options={"variation": {"shape": "L", "block_color": (200, 40, 40)}})
    >>> env.close()

    ```

    An environment can be deep-copied and pickled at any moment: the copy relives the episode from its start and goes on
    bit for bit like the original. To start from `get_state()` is not quite the same: the block then rests, which in
    the midst of a push costs the last hundredth of a second of its motion (0.3 px in the median of such steps), and a
    block that was squeezed out of the arena is refused.

    ## Version History

    * v0: first version; equal to `gym_pusht/PushT-v0` 0.1.8 in physics, random starts, spaces and rewards.

    ## References

    * Chi et al., "Diffusion Policy: Visuomotor Policy Learning via Action Diffusion", RSS 2023.
    * Cadene et al., gym-pusht, https://github.com/huggingface/gym-pusht.
    * Zhou et al., "DINO-WM: World Models on Pre-trained Visual Features enable Zero-shot Planning", 2024.
    """

    metadata: dict[str, Any] = {"render_modes": ["human", "rgb_array"], "render_fps": 10}

    def __init__(
        self,
        obs_type: str = "goal",
        control: str = "relative",
        task: str = "coverage",
        success_rule: str = "released",
        render_mode: str | None = None,
        observation_width: int = 96,
        observation_height: int = 96,
        visualization_width: int = 680,
        visualization_height: int = 680,
        segmentation: bool = False,
    ) -> None:
        check_picture(observation_width=observation_width, observation_height=observation_height)
        check_picture(visualization_width=visualization_width, visualization_height=visualization_height)
        self.observation_space = observations.observation_space(obs_type, observation_width, observation_height)
        if control not in ("relative", "absolute"):
            raise ValueError(f"unknown control {control!r}; expected 'relative' or 'absolute'")
        if task not in TASKS:
            raise ValueError(f"unknown task {task!r}; expected one of {list(TASKS)}")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"unknown render_mode {render_mode!r}; expected None, 'human' or 'rgb_array'")
        low, high = (-1.0, 1.0) if control == "relative" else (0.0, WINDOW)
        self.action_space = spaces.Box(low, high, (2,), np.float32)
        self.obs_type, self.control, self.task, self.render_mode = obs_type, control, task, render_mode
        self.segmentation = segmentation
        self.rule = find_rule(success_rule)
        self._renderer = PushTRenderer(observation_width, observation_height)
        self._view = PushTRenderer(visualization_width, visualization_height)
        self._window: Window | None = None
        self._physics = PushTPhysics(count_contacts=True)
        self._target: NDArray[np.float64] | None = None
        self._started = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; see "Reset Arguments" of the class. Raises ValueError for invalid options."""
        super().reset(seed=seed)
        parsed = ResetOptions.parse(options)
        self._check_combination(parsed)
        self._started = False  # until all is set, should no goal be found
        self._apply_style(parsed.style)
        start = parsed.state if parsed.state is not None else sample_start(self.np_random, self._physics)
        self._physics.reset(start)
        self._state = self._physics.state()
        self._target = None
        self._set_goal(parsed)
        self._started = True
        info = self._info(self._physics.coverage(self._goal_pose), is_success=False)
        if self.render_mode == "human":
            self.render()
        return self._observation(), info

    def step(self, action: ArrayLike) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Move the agent for 0.1 s; raises ValueError for an action of wrong shape or with a NaN."""
        self._check_started()
        self._target = self._target_of(action)
        self._physics.step(self._target)
        self._state = self._physics.state()
        coverage = self._physics.coverage(self._goal_pose)
        if self.task == "coverage":
            reward = min(max(coverage / COVERAGE_THRESHOLD, 0.0), 1.0)
            success = coverage > COVERAGE_THRESHOLD
        else:
            reward = self._goal_state_reward()
            success = self._counter.update(bool(self.rule.satisfied(self._state, self._goal_state, self._symmetry)))
        if self.render_mode == "human":
            self.render()
        return self._observation(), reward, success, False, self._info(coverage, success)

    def render(self) -> NDArray[np.uint8] | None:
        """The picture (visualization_height, visualization_width, 3) with the last target marked, or None.

        None in mode `human`, which shows the picture in a window, and without a render mode.
        """
        if self.render_mode is None:
            gym.logger.warn('render() without a render mode: use gym.make("PushT-v0", render_mode="rgb_array")')
            return None
        self._check_started()
        frame = self._view.frame(self._state, self._goal_pose)
        if self._target is not None:
            _mark(frame, self._target)
        if self.render_mode == "rgb_array":
            return frame
        if self._window is None:
            self._window = Window(self._view.width, self._view.height, self.metadata["render_fps"], "PushT-v0")
        self._window.show(frame)
        return None

    def close(self) -> None:
        """Close the window, if there is one; safe to call repeatedly."""
        if self._window is not None:
            self._window.close()
            self._window = None

    def get_state(self) -> NDArray[np.float64]:
        """The state (7,) as in `info["state"]`, to start from with `reset(options={"state": state})`; see the class."""
        self._check_started()
        return self._state.copy()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_window": None}

    def _check_started(self) -> None:
        if not self._started:
            raise gym.error.ResetNeeded("call reset() before step(), render() and get_state()")

    def _check_combination(self, parsed: ResetOptions) -> None:
        if self.task == "coverage" and parsed.goal_state is not None and parsed.goal_pose is not None:
            raise ValueError("got both goal_state and goal_pose; in the coverage task either sets the goal: drop one")
        two_boxes = len(block_shape(parsed.style.shape).pieces) == 2
        if self.obs_type == "environment_state_agent_pos" and not two_boxes:
            raise ValueError(
                f"obs_type 'environment_state_agent_pos' needs a block of two boxes, got shape {parsed.style.shape!r}; "
                "use another obs_type or shape"
            )

    def _apply_style(self, style: Style) -> None:
        self._symmetry = block_shape(style.shape).symmetry
        if style == self._renderer.style:
            return
        self._renderer = PushTRenderer(self._renderer.width, self._renderer.height, style)
        self._view = PushTRenderer(self._view.width, self._view.height, style)
        self._physics = PushTPhysics(style.shape, style.scale, style.agent_radius, count_contacts=True)

    def _set_goal(self, parsed: ResetOptions) -> None:
        self._goal_pose = np.array(GOAL_POSE) if parsed.goal_pose is None else parsed.goal_pose
        if parsed.goal_state is not None:
            self._goal_state = parsed.goal_state
            if self.task == "coverage":
                self._goal_pose = parsed.goal_state[2:5]
        elif self.task == "coverage":
            agent = clear_of_block(self._physics, self._state[:2], self._goal_pose)
            self._goal_state = np.array([*agent, *self._goal_pose, 0.0, 0.0])
        else:
            self._goal_state = sample_goal(self.np_random, self._physics, self._state, self.rule, self._symmetry)
        self._counter = SuccessCounter(self.rule)
        if self.obs_type == "goal":
            self._goal_pixels = self._renderer.frame(self._goal_state, self._goal_pose)

    def _target_of(self, action: ArrayLike) -> NDArray[np.float64]:
        try:
            values: NDArray[np.float64] = np.asarray(action, dtype=np.float64)
        except (TypeError, ValueError):
            raise ValueError(f"action must be 2 numbers, got {action!r}") from None
        if values.shape != (2,) or not np.all(np.isfinite(values)):
            raise ValueError(f"action must be 2 finite numbers from {self.action_space}, got {action!r}")
        if self.control == "relative":
            # Rounded to the precision of actions, so that recorded float32 actions replay to the last bit.
            values = self._state[:2] + (PX_PER_ACTION * values.clip(-1.0, 1.0)).astype(np.float32)
        return np.clip(values, 0.0, WINDOW)

    def _goal_state_reward(self) -> float:
        distance, _ = self.rule.errors(self._state, self._goal_state, self._symmetry)
        angle = angle_error(self._state[4], self._goal_state[4], self._symmetry)
        return -0.5 * (min(float(distance) / WINDOW, 1.0) + float(angle) * self._symmetry / math.pi)

    def _observation(self) -> Any:
        state = self._state
        if self.obs_type == "state":
            return self._clipped(observations.wrapped_state(state))
        if self.obs_type == "environment_state_agent_pos":
            corners = observations.keypoints(self._physics)
            return {
                "environment_state": self._clipped(corners, "environment_state"),
                "agent_pos": self._clipped(state[:2], "agent_pos"),
            }
        pixels = self._renderer.frame(state, self._goal_pose)
        if self.obs_type == "pixels":
            return pixels
        if self.obs_type == "pixels_agent_pos":
            return {"pixels": pixels, "agent_pos": self._clipped(state[:2], "agent_pos")}
        return {
            "pixels": pixels,
            "proprio": self._clipped(observations.proprio(state), "proprio"),
            "goal_pixels": self._goal_pixels.copy(),
            "goal_proprio": observations.proprio(self._goal_state),
        }

    def _clipped(self, values: NDArray[np.floating[Any]], key: str = "") -> NDArray[np.floating[Any]]:
        """Numbers of an observation, or of its part ``key``, within their space."""
        whole: Any = self.observation_space
        space = whole[key] if key else whole
        clipped: NDArray[np.floating[Any]] = np.clip(values, space.low, space.high)
        return clipped

    def _info(self, coverage: float, is_success: bool) -> dict[str, Any]:
        state = self._state
        info: dict[str, Any] = {
            "state": state.copy(),
            "goal_state": self._goal_state.copy(),
            "block_pose": state[2:5].copy(),
            "goal_pose": self._goal_pose.copy(),
            "pos_agent": state[:2].copy(),
            "vel_agent": state[5:].copy(),
            "coverage": coverage,
            "is_success": is_success,
            "n_contacts": math.ceil(self._physics.n_contact_points / CONTACTS_DIVISOR),
        }
        if self.segmentation:
            info["segmentation"] = self._renderer.masks(state, self._goal_pose)
        return info


def _mark(frame: NDArray[np.uint8], target: NDArray[np.float64]) -> None:
    """Draw a cross over ``frame`` (H, W, 3) at ``target`` (x, y px of the arena), in place."""
    height, width = frame.shape[:2]
    x, y = int(target[0] / WINDOW * width), int(target[1] / WINDOW * height)
    arm, half = min(width, height) * 4 // 96, min(width, height) // 192
    for dx, dy in ((arm, half), (half, arm)):
        frame[max(y - dy, 0) : y + dy + 1, max(x - dx, 0) : x + dx + 1] = MARKER
