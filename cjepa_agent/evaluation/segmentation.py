"""``task=segmentation``: whether slots of CLEVRER videos hold one object each, and keep it.

The decoder's masks (the slot with the largest share of each pixel) are compared with the renderer's. FG-ARI is the
adjusted Rand index over the pixels of true objects, as SAVi reports it (arXiv 2111.12594): of a frame it tells whether
objects have a slot each, of a whole video also whether they keep it. mBO is the mean over objects of the best
intersection over union. Annotations serve to measure only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import imageio.v3 as iio
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from cjepa_agent.data.video_slots import VideoSlots
from cjepa_agent.encoders.autoencoder import SlotAutoencoder
from cjepa_agent.encoders.base import ColourDecoder, grid_coordinates
from cjepa_agent.evaluation.config import EvaluateConfig
from cjepa_agent.evaluation.probe import best_overlap, foreground_ari
from cjepa_agent.evaluation.results import plain_table
from cjepa_agent.files import write_json
from cjepa_agent.intervals import interval_text, scene_mean
from cjepa_agent.paths import cache_folder
from cjepa_agent.provenance import provenance
from envs.clevrer.dataset import Dataset, split_of
from envs.clevrer.physics import VISIBLE_FRAMES
from envs.clevrer.render import CLEVRERRenderer
from envs.files import atomic

SCENES, FRAMES, SIZE = 100, range(0, VISIBLE_FRAMES, 8), 64
PICTURE_SCENES, PICTURE_FRAMES, PALETTE = 6, 8, 12


class Segmented(NamedTuple):
    """Masks of F frames of a video.

    Attributes:
        truth: (F, H, W), 0 for the floor, the object with id i is i + 1.
        found: (F, H, W) number of the slot.
        painted: (F, H, W, 3) uint8, the frames as the decoder draws them.
    """

    truth: NDArray[np.uint8]
    found: NDArray[np.int64]
    painted: NDArray[np.uint8]

    @property
    def frames(self) -> list[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        """True and found masks of the frames in which an object is seen."""
        return [(t, f) for t, f in zip(self.truth, self.found, strict=True) if t.any()]


def run(config: EvaluateConfig) -> str:
    """Measure, write ``segmentation.json`` and ``segmentation.png`` to ``config.out``, return the table."""
    slots = VideoSlots(Path(config.slots or cache_folder() / "clevrer_slots"))
    slots.require_whole()
    autoencoder, data = SlotAutoencoder.load(slots.folder), Dataset(Path(config.data or cache_folder() / "clevrer"))
    if autoencoder.encoder.privileged or not isinstance(autoencoder.decoder, ColourDecoder):
        raise ValueError(
            f"task=segmentation compares masks of slots of pixels, but {slots.folder} is of {autoencoder.config.kind}"
        )
    scenes = [scene for scene in slots.scenes if split_of(scene) == config.split][: config.episodes or SCENES]
    if not scenes:
        raise ValueError(f"{slots.folder} has no scene of split {config.split!r}")
    renderer = CLEVRERRenderer(SIZE, SIZE)
    shown = tqdm(scenes, unit="scene", mininterval=2.0)
    videos = [_segmented(data, slots, autoencoder.decoder, renderer, scene) for scene in shown]
    rng = np.random.default_rng(config.seed)
    frames = [(scene, *pair) for scene, video in zip(scenes, videos, strict=True) for pair in video.frames]
    measures = {
        "FG-ARI, frame": [(scene, foreground_ari(truth, found)) for scene, truth, found in frames],
        "FG-ARI, video": [(scene, foreground_ari(v.truth, v.found)) for scene, v in zip(scenes, videos, strict=True)],
        "mBO, frame": [(scene, best_overlap(truth, found)) for scene, truth, found in frames],
    }
    rows = {name: scene_mean(values, rng) for name, values in measures.items()}
    out = Path(config.out)
    report = {
        "config": config.record(),
        "slots": slots.identity,
        "scenes": len(scenes),
        "frames_per_scene": len(FRAMES),
        "measures": rows,
        "provenance": provenance(),
    }
    write_json(out / "segmentation.json", report)
    _picture(videos[:PICTURE_SCENES], out / "segmentation.png")
    table = plain_table(
        ["measure", f"mean of {len(scenes)} videos"], [[n, interval_text(r, 3)] for n, r in rows.items()]
    )
    return f"{table}\n\nwritten:\n  {out / 'segmentation.json'}\n  {out / 'segmentation.png'}"


@torch.no_grad()
def _segmented(
    data: Dataset, slots: VideoSlots, decoder: ColourDecoder, renderer: CLEVRERRenderer, scene: int
) -> Segmented:
    trajectory, points = data.trajectory(scene), grid_coordinates(SIZE).expand(len(FRAMES), -1, -1)
    painted, masks = decoder.paint(slots.read(scene, slice(FRAMES.start, FRAMES.stop, FRAMES.step)), points)
    shape = len(FRAMES), SIZE, SIZE
    return Segmented(
        np.stack([renderer.draw(trajectory, frame)[1] for frame in FRAMES]),
        masks.argmax(1).view(shape).numpy(),
        (painted.view(*shape, 3).clamp(0, 1) * 255).round().to(torch.uint8).numpy(),
    )


def _picture(videos: Sequence[Segmented], path: Path) -> None:
    """For each video true masks, the slots' masks and what the decoder paints, frames side by side, twice as large."""
    colours = np.random.default_rng(0).integers(60, 255, (PALETTE, 3), dtype=np.uint8)
    colours[0] = 40
    every = slice(None, None, len(FRAMES) // PICTURE_FRAMES)
    rows = []
    for video in videos:
        for panel in (colours[video.truth % PALETTE], colours[video.found % PALETTE], video.painted):
            rows.append(np.concatenate(list(panel[every]), axis=1))
    with atomic(path) as temporary:
        iio.imwrite(temporary, np.concatenate(rows).repeat(2, axis=0).repeat(2, axis=1), extension=path.suffix)
