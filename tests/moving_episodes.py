"""Push-T episodes in which everything moves on a line: fast to make, drawn as the environment draws."""

from pathlib import Path

import numpy as np

from cjepa_agent.data.episodes import write_episodes
from envs.pusht.render import PushTRenderer

GOAL = (256.0, 256.0, np.pi / 4)


def write_moving_episodes(path: Path, size: int, frames: int, speed: float = 2.0) -> None:
    """Write six episodes.

    Args:
        path: HDF5 file.
        size: of frames [px].
        frames: of each episode.
        speed: largest change of each number of the state in a frame.
    """
    renderer, rng = PushTRenderer(size, size), np.random.default_rng(0)

    def episode() -> dict[str, np.ndarray]:
        state = rng.uniform(180, 320, 7) + rng.uniform(-speed, speed, 7) * np.arange(frames)[:, None]
        return {
            "pixels": np.stack([renderer.frame(s, GOAL) for s in state]),
            "action": rng.uniform(-1, 1, (frames, 2)).astype(np.float32),
            "proprio": state[:, [0, 1, 5, 6]].astype(np.float32),
            "state": state,
        }

    write_episodes(path, (episode() for _ in range(6)))
