"""What ``PushTEnv.reset(options=...)`` accepts, checked once and with one clear error each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.pusht.physics import WINDOW
from envs.pusht.render import Style
from envs.pusht.shapes import shape_name

GOAL_POSE = (256.0, 256.0, math.pi / 4)  # x px, y px, angle rad
# No action sequence inside the window makes the agent faster: its controller approaches at 10/s at most.
MAX_SPEED = 10.0 * WINDOW  # px/s
OPTIONS = ("state", "goal_state", "goal_pose", "variation")
COLOURS = {f"{part}_color": part for part in ("background", "goal", "block", "agent", "wall")}
SIZES = {"scale": (10.0, 50.0), "agent_radius": (5.0, 40.0)}  # px per unit of outline; px
VARIATIONS = (*COLOURS, "shape", *SIZES)


@dataclass(frozen=True)
class ResetOptions:
    """Checked reset options; None stands for "not given"."""

    state: NDArray[np.float64] | None
    goal_state: NDArray[np.float64] | None
    goal_pose: NDArray[np.float64] | None
    style: Style

    @classmethod
    def parse(cls, options: Mapping[str, Any] | None) -> ResetOptions:
        """Check ``options``; raises ValueError naming what was given, what is expected and how to mend it."""
        given = _mapping(options, "options", OPTIONS)
        state, goal_state, goal_pose = (given.get(key) for key in OPTIONS[:3])
        return cls(
            None if state is None else check_state(state, "state"),
            None if goal_state is None else check_state(goal_state, "goal_state"),
            None if goal_pose is None else check_pose(goal_pose, "goal_pose"),
            parse_variation(given.get("variation")),
        )


def _mapping(value: Any, name: str, known: tuple[str, ...]) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be a dict with keys from {list(known)} or None, got {type(value).__name__}")
    unknown = [key for key in value if key not in known]
    if unknown:
        raise ValueError(f"unknown {name} {unknown}; expected keys from {list(known)}: rename or remove them")
    return dict(value)


def _numbers(value: Any, name: str, lengths: tuple[int, ...], meaning: str) -> NDArray[np.float64]:
    expected = f"{name} must be {' or '.join(map(str, lengths))} finite numbers ({meaning})"
    try:
        numbers = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{expected}, got {value!r}") from None
    if numbers.ndim != 1 or len(numbers) not in lengths:
        raise ValueError(f"{expected}, got shape {numbers.shape}")
    if not np.all(np.isfinite(numbers)):
        raise ValueError(f"{expected}, got {numbers.tolist()}: replace NaN and infinity")
    return numbers


def _inside(points: NDArray[np.float64], name: str) -> None:
    if np.any(points < 0) or np.any(points > WINDOW):
        raise ValueError(
            f"{name} must lie in the arena, 0 <= x, y <= {WINDOW} px, got {points.tolist()}: "
            "move the agent or the block inside"
        )


def check_state(value: Any, name: str) -> NDArray[np.float64]:
    """A state (7,) float64 from 5 or 7 numbers; raises ValueError unless finite and inside the arena."""
    meaning = "agent x, y, block x, y [px], block angle [rad], optionally agent vx, vy [px/s]"
    numbers = _numbers(value, name, (5, 7), meaning)
    _inside(numbers[:4], f"{name}[:4]")
    state = np.zeros(7)
    state[: len(numbers)] = numbers
    if np.any(np.abs(state[5:]) > MAX_SPEED):
        raise ValueError(f"{name}[5:] must be velocities of at most {MAX_SPEED:g} px/s, got {state[5:].tolist()}")
    return state


def check_pose(value: Any, name: str) -> NDArray[np.float64]:
    """A block pose (3,) float64; raises ValueError unless finite and inside the arena."""
    pose = _numbers(value, name, (3,), "block x, y [px], angle [rad]")
    _inside(pose[:2], f"{name}[:2]")
    return pose


def parse_variation(variation: Any) -> Style:
    """The style that ``options["variation"]`` asks for; raises ValueError for unknown keys and bad values."""
    given = _mapping(variation, "variation", VARIATIONS)
    changes: dict[str, Any] = {}
    for key, value in given.items():
        if key in COLOURS:
            changes[COLOURS[key]] = _colour(value, f"variation[{key!r}]")
        elif key in SIZES:
            changes[key] = _size(value, f"variation[{key!r}]", *SIZES[key])
        else:
            changes[key] = shape_name(value)
    return replace(Style(), **changes)


def _colour(value: Any, name: str) -> tuple[int, int, int]:
    channels = list(value) if isinstance(value, list | tuple | np.ndarray) else []
    if len(channels) != 3 or not all(isinstance(c, Integral) and 0 <= int(c) <= 255 for c in channels):
        raise ValueError(f"{name} must be an RGB triple of integers in 0..255, got {value!r}")
    red, green, blue = (int(c) for c in channels)
    return red, green, blue


def _size(value: Any, name: str, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= float(value) <= high:
        raise ValueError(f"{name} must be a number in [{low:g}, {high:g}] px, got {value!r}")
    return float(value)
