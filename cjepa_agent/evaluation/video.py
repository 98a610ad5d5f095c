"""Films of what the agent sees, wants and expects."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cjepa_agent.agent import CJEPAAgent, Episode
from envs.files import atomic
from envs.pusht.env import PushTEnv

PANEL, TITLE = 224, 32  # px; width and height of a film must be multiples of 16
TITLES = ("now", "goal", "slots", "imagined end of plan")
FPS, HOLD = 10, 10  # frames per second, and how many of the last one are added

Frame = NDArray[np.uint8]


class Camera:
    """Films the first episodes of an agent: frame, goal, slot masks, and the decoded end of the current plan.

    Args:
        agent: whose plans are drawn.
        folder: where the films go.
        prefix: of the file names.
        episodes: how many to film.
    """

    def __init__(self, agent: CJEPAAgent, folder: Path, prefix: str, episodes: int) -> None:
        self.agent, self.folder, self.prefix, self.episodes = agent, folder, prefix, episodes
        self._frames: dict[int, list[Frame]] = {}
        self._imagined: dict[int, tuple[int, Frame]] = {}

    def __call__(self, index: int, env: PushTEnv, observation: Mapping[str, Any], state: Episode) -> None:
        """Take a picture of episode ``index``; the signature is that of ``run_episodes``' ``watch``."""
        if index >= self.episodes:
            return
        real = env.render()
        if real is None:
            raise ValueError("films need an environment with render_mode='rgb_array'")
        if self._imagined.get(index, (None,))[0] != state.replans:
            self._imagined[index] = (state.replans, self.agent.imagination(0, [state]).frames[-1])
        slots = self._slots(observation)
        panels = (real, observation["goal_pixels"], slots, self._imagined[index][1])
        self._frames.setdefault(index, []).append(compose(panels, TITLES))

    def _slots(self, observation: Mapping[str, Any]) -> Frame:
        model, device = self.agent.model, self.agent.device
        observed = torch.from_numpy(observation[self.agent.observes]).to(device)[None]
        latent = model.encode(observed, torch.from_numpy(observation["proprio"]).to(device)[None])
        return colour_masks(model.decode(latent)[1][0].cpu().numpy())

    def write(self) -> list[Path]:
        """Write ``<prefix>_<index>.mp4`` files; returns their paths."""
        self.folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for index, frames in sorted(self._frames.items()):
            path = self.folder / f"{self.prefix}_{index}.mp4"
            with atomic(path) as temporary:
                held, form = [*frames, *frames[-1:] * HOLD], ["-f", "mp4"]  # which the temporary name does not tell
                imageio.mimwrite(temporary, held, "mp4", fps=FPS, macro_block_size=16, output_params=form)  # type: ignore[arg-type]
            paths.append(path)
        return paths


def colour_masks(masks: NDArray[np.float32]) -> Frame:
    """Slot masks (S, H, W), summing to 1, as a picture (H, W, 3) with one colour per slot."""
    hues = [colorsys.hsv_to_rgb(slot / len(masks), 0.75, 0.95) for slot in range(len(masks))]
    picture = np.einsum("shw,sc->hwc", masks, np.array(hues))
    coloured: Frame = (255 * picture).round().clip(0, 255).astype(np.uint8)
    return coloured


def compose(panels: tuple[Frame, ...], titles: tuple[str, ...]) -> Frame:
    """Panels of any size side by side, each PANEL px wide under its title."""
    sheet = Image.new("RGB", (PANEL * len(panels), PANEL + TITLE), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        sheet.paste(Image.fromarray(panel).resize((PANEL, PANEL)), (column * PANEL, TITLE))
        draw.text((column * PANEL + 8, 8), title, fill="black", font_size=15)
    return np.asarray(sheet)
