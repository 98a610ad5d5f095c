"""The Gymnasium environment ``CLEVRER-v0``."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from numbers import Integral
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from envs.clevrer.annotation import read_scene
from envs.clevrer.camera import HEIGHT, WIDTH
from envs.clevrer.events import Event, list_events
from envs.clevrer.physics import FRAMES, VISIBLE_FRAMES, Trajectory, simulate
from envs.clevrer.render import CLEVRERRenderer
from envs.clevrer.sampling import sample_scene
from envs.clevrer.scene import MAX_OBJECTS, Scene
from envs.window import Window, check_picture

OBS_TYPES = ("pixels", "ground_truth")
OPTIONS = ("scene", "remove")
# Of one object in `states`: present, inside, x, y, angle, vx, vy, spin.
LOW = np.array([0, 0, -100, -100, 0, -100, -100, -1000], np.float32)
HIGH = np.array([1, 1, 100, 100, 2 * math.pi, 100, 100, 1000], np.float32)


class CLEVREREnv(gym.Env[Any, np.int64]):
    """Watch solids roll in, collide and leave, and take some of them away.

    ## Description

    Three to six spheres, cubes and cylinders of equal size, of eight colours, of metal or rubber, slide over a floor
    that slows them down, and bounce off each other. A camera looks at them from above at 30 degrees: the world of the
    CLEVRER videos, with the physics and the camera that VRDP fitted to them. One step is one frame (25 per second);
    frame 127 is the last one of a CLEVRER video.

    World axes: x toward the camera, y to the right of the picture, in units of which an object is 0.4 wide. Velocities
    are per second of simulated time, which has 35 frames.

    ## Action Space

    `Discrete(7)`: 0 watches, i takes away the object with id i - 1, which is gone from the next frame on. Taking away
    what is not there does nothing; `info["action_mask"]` says which actions do something. Anything outside the space
    raises `ValueError`.

    ## Observation Space

    | `obs_type` | observation |
    | --- | --- |
    | `pixels` (default) | picture (H, W, 3) uint8 RGB |
    | `ground_truth` | dict of `pixels`, `states` (48,) float32 and `segmentation` (H, W, 1) uint8 |

    `states` has 8 numbers for each id, `reshape(6, 8)`: whether the object is there, whether the camera sees it, x, y,
    angle [0..2 pi rad], vx, vy, angular velocity [rad/s]; all 0 for ids that are not there. `segmentation` is 0 on the
    floor and i + 1 on the object with id i. Pictures show the whole 480 x 320 view, stretched to
    `observation_height` x `observation_width`, by default 64 x 64.

    `info` carries, at every step and reset:

    | key | meaning |
    | --- | --- |
    | `frame` | int, 0 at reset |
    | `events` | tuple of `envs.clevrer.events.Event` that happen at this frame |
    | `action_mask` | (7,) int8, 1 for actions that do something, as `action_space.sample(mask=...)` takes it |

    `env.unwrapped.scene` and `env.unwrapped.trajectory` hold the start and the whole course, future frames included,
    as it is if nothing else is taken away.

    ## Rewards

    0: there is no task.

    ## Starting State

    A random scene of `envs.clevrer.sampling.sample_scene`: each object after the first is aimed at an earlier one, 1 to
    5 collisions in 128 frames, no pair twice.

    ## Episode Termination

    An episode never terminates. It is truncated at its last frame, `frames - 1`.

    ## Arguments

    ```python
    >>> import gymnasium as gym
    >>> import envs
    >>> env = gym.make("CLEVRER-v0", render_mode="rgb_array")
    >>> observation, info = env.reset(seed=0)
    >>> observation.shape, info["frame"]
    ((64, 64, 3), 0)
    >>> observation, reward, terminated, truncated, info = env.step(0)
    >>> env.render().shape
    (320, 480, 3)

    ```

    * `obs_type`: one of the table above, default `pixels`.
    * `frames`: length of an episode, 2 to 180, default 128. The physics of an episode does not depend on it.
    * `render_mode`: `rgb_array`, `human` or None (default).
    * `observation_width`, `observation_height`: px, default 64.
    * `visualization_width`, `visualization_height`: px, default 480 and 320, the size of `render()`.

    ## Reset Arguments

    `reset(options=...)` takes a dict with any of these keys; anything invalid raises `ValueError`.

    * `scene`: an `envs.clevrer.scene.Scene`, or an annotation in CLEVRER's JSON format, whose frame 0 is the start.
    * `remove`: ids of objects that are not there from the start; all others begin as if they were.

    ```python
    >>> scene = env.unwrapped.scene
    >>> observation, info = env.reset(options={"scene": scene, "remove": [1]})
    >>> env.unwrapped.trajectory.ids == tuple(id for id in scene.ids if id != 1)
    True
    >>> env.close()

    ```

    An environment can be copied and pickled at any moment.

    ## Version History

    * v0: first version.

    ## References

    * Yi et al., "CLEVRER: CoLlision Events for Video REpresentation and Reasoning", ICLR 2020.
    * Ding et al., "Dynamic Visual Reasoning by Learning Differentiable Physics Models from Video and Language",
      NeurIPS 2021 (VRDP).
    """

    metadata: dict[str, Any] = {"render_modes": ["human", "rgb_array"], "render_fps": 25}

    def __init__(
        self,
        obs_type: str = "pixels",
        frames: int = VISIBLE_FRAMES,
        render_mode: str | None = None,
        observation_width: int = 64,
        observation_height: int = 64,
        visualization_width: int = WIDTH,
        visualization_height: int = HEIGHT,
    ) -> None:
        if obs_type not in OBS_TYPES:
            raise ValueError(f"unknown obs_type {obs_type!r}; expected one of {list(OBS_TYPES)}")
        if not isinstance(frames, int | np.integer) or not 2 <= frames <= FRAMES:
            raise ValueError(f"frames must be a whole number from 2 to {FRAMES}, got {frames!r}")
        check_picture(observation_width=observation_width, observation_height=observation_height)
        check_picture(visualization_width=visualization_width, visualization_height=visualization_height)
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"unknown render_mode {render_mode!r}; expected None, 'human' or 'rgb_array'")
        self.obs_type, self.frames, self.render_mode = obs_type, frames, render_mode
        self._renderer = CLEVRERRenderer(observation_width, observation_height)
        self._view = None if render_mode is None else CLEVRERRenderer(visualization_width, visualization_height)
        self._window: Window | None = None
        self._frame: int | None = None
        self.action_space = spaces.Discrete(1 + MAX_OBJECTS)
        pixels = spaces.Box(0, 255, (observation_height, observation_width, 3), np.uint8)
        states = spaces.Box(np.tile(LOW, MAX_OBJECTS), np.tile(HIGH, MAX_OBJECTS), dtype=np.float32)
        segmentation = spaces.Box(0, 255, (observation_height, observation_width, 1), np.uint8)
        self.observation_space: spaces.Space[Any] = pixels
        if obs_type == "ground_truth":
            self.observation_space = spaces.Dict({"pixels": pixels, "states": states, "segmentation": segmentation})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; see "Reset Arguments" of the class. Raises ValueError for invalid options."""
        super().reset(seed=seed)
        scene, removed = _parse(options)
        if scene is None:
            scene = sample_scene(self.np_random)
        self._course(scene, dict.fromkeys(removed, 0))
        self._frame = 0
        if self.render_mode == "human":
            self.render()
        return self._observation(0), self._info(0)

    def step(self, action: int | np.integer[Any]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take away an object, or nothing, and go on by a frame; raises ValueError for an invalid action."""
        frame = self._started()
        if not self.action_space.contains(action):
            raise ValueError(f"action must be a whole number from 0 to {MAX_OBJECTS}, got {action!r}")
        if frame + 1 >= self.frames:
            raise gym.error.ResetNeeded(f"the episode ended with frame {frame}: call reset()")
        index = int(action)  # a bool, which the space contains, would be a mask
        if index and self._action_mask(frame)[index]:
            self._course(self.scene, {**self._removed, index - 1: frame + 1})
        self._frame = frame = frame + 1
        if self.render_mode == "human":
            self.render()
        return self._observation(frame), 0.0, False, frame + 1 == self.frames, self._info(frame)

    def render(self) -> NDArray[np.uint8] | None:
        """The picture (visualization_height, visualization_width, 3), or None.

        None in mode `human`, which shows the picture in a window, and without a render mode.
        """
        if self._view is None:
            gym.logger.warn('render() without a render mode: use gym.make("CLEVRER-v0", render_mode="rgb_array")')
            return None
        frame = self._started()
        picture, _ = self._view.draw(self.trajectory, frame)
        if self.render_mode == "rgb_array":
            return picture
        if self._window is None:
            self._window = Window(self._view.width, self._view.height, self.metadata["render_fps"], "CLEVRER-v0")
        self._window.show(picture)
        return None

    def close(self) -> None:
        """Close the window, if there is one; safe to call repeatedly."""
        if self._window is not None:
            self._window.close()
            self._window = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_window": None}

    def _started(self) -> int:
        if self._frame is None:
            raise gym.error.ResetNeeded("call reset() before step() and render()")
        return self._frame

    def _course(self, scene: Scene, removed: dict[int, int]) -> None:
        # The past does not depend on a later removal, so an intervention just computes the whole course anew.
        self.trajectory: Trajectory = simulate(scene, removed)
        self.scene, self._removed = scene, removed
        self._events: tuple[Event, ...] = list_events(self.trajectory, self.frames)

    def _action_mask(self, frame: int) -> NDArray[np.int8]:
        mask = np.zeros(1 + MAX_OBJECTS, np.int8)
        mask[0] = 1
        mask[1 + np.array(self.trajectory.ids, dtype=int)] = self.trajectory.present[frame]
        return mask

    def _info(self, frame: int) -> dict[str, Any]:
        return {
            "frame": frame,
            "events": tuple(event for event in self._events if event.frame == frame),
            "action_mask": self._action_mask(frame),
        }

    def _observation(self, frame: int) -> Any:
        pixels, segmentation = self._renderer.draw(self.trajectory, frame)
        if self.obs_type == "pixels":
            return pixels
        states = object_states(self.trajectory, frame)
        return {"pixels": pixels, "states": states, "segmentation": segmentation[..., None]}


def object_states(course: Trajectory, frame: int) -> NDArray[np.float32]:
    """The observation ``states`` (48,) of a frame of a trajectory, as ``CLEVREREnv`` explains it."""
    states = np.zeros((MAX_OBJECTS, len(LOW)), np.float32)
    for index, id in enumerate(course.ids):
        if course.present[frame, index]:
            angle, spin = course.orientation[frame, index, 2], course.angular_velocity[frame, index, 2]
            place, motion = course.location[frame, index, :2], course.velocity[frame, index, :2]
            states[id] = 1, course.inside[frame, index], *place, angle % (2 * math.pi), *motion, spin
    return states.ravel()


def _parse(options: Mapping[str, Any] | None) -> tuple[Scene | None, Collection[int]]:
    if options is not None and not isinstance(options, Mapping):
        raise ValueError(f"options must be a dict with keys from {list(OPTIONS)} or None, got {options!r}")
    given = dict(options or {})
    unknown = [key for key in given if key not in OPTIONS]
    if unknown:
        raise ValueError(f"unknown options {unknown}; expected keys from {list(OPTIONS)}: rename or remove them")
    scene = given.get("scene")
    if isinstance(scene, Mapping):
        scene = read_scene(scene)
    if not isinstance(scene, Scene | None):
        raise ValueError(f"scene must be a Scene or an annotation in CLEVRER's format, got {type(scene).__name__}")
    removed = given.get("remove")
    if removed is None:
        return scene, ()
    if not isinstance(removed, Collection) or any(isinstance(i, bool) or not isinstance(i, Integral) for i in removed):
        raise ValueError(f"remove must be a list of object ids, got {removed!r}")
    return scene, removed
