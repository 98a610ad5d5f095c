"""``task=probe``: what the frozen slots encode, on test episodes.

Read-outs of the true state are fitted on training episodes; masks are compared with the renderer's. State and masks
serve to measure only: the encoder has never seen them.
"""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score
from torch import Tensor
from tqdm import tqdm

from cjepa_agent.checkpoint import Checkpoint
from cjepa_agent.data.episodes import EpisodeFile, Split
from cjepa_agent.encoders.patches import PatchTokenConfig
from cjepa_agent.evaluation.config import EvaluateConfig
from cjepa_agent.evaluation.results import plain_table
from cjepa_agent.files import write_json
from cjepa_agent.latent import Latent
from cjepa_agent.paths import cache_folder
from cjepa_agent.provenance import provenance
from cjepa_agent.reading.readout import fit_linear, fit_mlp
from cjepa_agent.world_model import WorldModel
from envs.files import atomic
from envs.pusht.render import PushTRenderer

TRAIN_FRAMES, TEST_FRAMES, MASK_FRAMES, PICTURE_FRAMES = 20000, 2000, 200, 6
GOAL_POSE = (256.0, 256.0, np.pi / 4)


def run(config: EvaluateConfig) -> str:
    """Measure, write ``probe.json`` and ``probe.png`` to ``config.out``, return the table."""
    checkpoint = Checkpoint.from_pretrained(config.weights)
    if checkpoint.model.encoder.privileged:
        raise ValueError(f"task=probe measures what slots tell of pixels, but {config.weights} is privileged: state in")
    if isinstance(checkpoint.model.config.encoder, PatchTokenConfig):
        raise ValueError(
            f"task=probe measures slots of objects, but {config.weights} has patches, none of which is one"
        )
    data = EpisodeFile(config.data or cache_folder() / "pusht.h5")
    model, rng = checkpoint.model, np.random.default_rng(config.seed)
    train_slots, train_state = _sample(model, data, "train", TRAIN_FRAMES, rng)
    test_slots, test_state = _sample(model, data, "test", TEST_FRAMES, rng)
    generator = torch.Generator().manual_seed(config.seed)
    readouts = {
        "linear": fit_linear(train_slots, targets(train_state)),
        "MLP": fit_mlp(train_slots, targets(train_state), generator),
    }
    rows = {name: errors(readout(test_slots), test_state) for name, readout in readouts.items()}
    segmentation = _segmentation(model, data)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    _picture(model, data, out / "probe.png")
    report = {
        "config": config.record(),
        "frames": {
            "train": len(train_state),
            "test": len(test_state),
            "masks": len(data.episodes("test")[:MASK_FRAMES]),
        },
        "median_errors": rows,
        "segmentation": segmentation,
        "provenance": provenance(),
    }
    write_json(out / "probe.json", report)
    header = ["read-out (median error)", *next(iter(rows.values()))]
    cells = [[name, *(f"{value:.2f}" for value in row.values())] for name, row in rows.items()]
    scores = "  ".join(f"{name} {value:.3f}" for name, value in segmentation.items())
    return f"{plain_table(header, cells)}\n\n{scores}\n\nwritten:\n  {out / 'probe.json'}\n  {out / 'probe.png'}"


def targets(state: Tensor) -> Tensor:
    """Regression targets (M, 6), roughly unit scale: agent x, y, block x, y, cos and sin of the block's angle."""
    return torch.cat([(state[:, :4] - 256) / 128, state[:, 4:5].cos(), state[:, 4:5].sin()], dim=1)


def errors(prediction: Tensor, state: Tensor) -> dict[str, float]:
    """Median distance of agent and block (px) and median angle error (degrees) of predicted targets (M, 6)."""
    difference = (prediction - targets(state))[:, :4] * 128
    turn = torch.atan2(prediction[:, 5], prediction[:, 4]) - state[:, 4]
    turn = torch.atan2(turn.sin(), turn.cos()).abs().rad2deg()
    return {
        "agent px": float(difference[:, :2].norm(dim=1).median()),
        "block px": float(difference[:, 2:].norm(dim=1).median()),
        "angle deg": float(turn.median()),
    }


def foreground_ari(truth: NDArray[np.uint8], found: NDArray[np.int64]) -> float:
    """FG-ARI: adjusted Rand index over the pixels of true objects (not the background, 0), of which there are some."""
    objects = truth > 0
    return float(adjusted_rand_score(truth[objects], found[objects]))


def best_overlap(truth: NDArray[np.uint8], found: NDArray[np.int64]) -> float:
    """Mean over the true objects (not the background, 0) of the best intersection over union with any slot."""
    scores = []
    for label in np.unique(truth[truth > 0]):
        here = truth == label
        scores.append(max(float((here & (found == s)).sum() / (here | (found == s)).sum()) for s in np.unique(found)))
    return float(np.mean(scores))


@torch.no_grad()
def _encode(model: WorldModel, frames: NDArray[np.uint8]) -> Tensor:
    """Normalised slots (M, S, D)."""
    return model.encode(torch.from_numpy(frames), torch.zeros(len(frames), model.config.proprio_dim)).slots


def _sample(
    model: WorldModel, data: EpisodeFile, split: Split, frames: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Slots (M, S * D) and states (M, 7) of frames drawn evenly from the episodes of a split."""
    episodes = data.episodes(split)
    if not len(episodes):
        raise ValueError(f"{data.path} has no {split} episodes; probe on a file that has train and test episodes")
    per_episode = max(1, frames // len(episodes))
    slots, states = [], []
    for episode in tqdm(episodes[: max(1, frames // per_episode)], unit="episode", mininterval=2.0):
        rows = np.sort(rng.choice(data.lengths[episode], min(per_episode, data.lengths[episode]), replace=False))
        slots.append(_encode(model, data.read("pixels", int(episode))[rows]).flatten(1))
        states.append(data.read("state", int(episode))[rows])
    return torch.cat(slots), torch.from_numpy(np.concatenate(states)).float()


def _test_frames(data: EpisodeFile, count: int) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The middle frame, and its state, of the first ``count`` test episodes."""
    chosen = [(int(e), int(data.lengths[e] // 2)) for e in data.episodes("test")[:count]]
    frames = np.concatenate([data.read("pixels", e, row, row + 1) for e, row in chosen])
    return frames, np.concatenate([data.read("state", e, row, row + 1) for e, row in chosen])


def _segmentation(model: WorldModel, data: EpisodeFile) -> dict[str, float]:
    """Mean FG-ARI and mBO of the decoded masks (argmax over slots) against the renderer's."""
    frames, states = _test_frames(data, MASK_FRAMES)
    renderer = PushTRenderer(frames.shape[2], frames.shape[1])
    slots = _encode(model, frames)
    _, masks = model.decode(Latent(slots, torch.zeros(len(slots), model.config.proprio_dim)), frames.shape[1])
    scores = []
    for state, mask in zip(states, masks.argmax(1).flatten(1).numpy(), strict=True):
        truth = renderer.masks(state, GOAL_POSE).flatten()
        scores.append((foreground_ari(truth, mask), best_overlap(truth, mask)))
    fg_ari, overlap = np.mean(scores, axis=0)
    return {"FG-ARI": float(fg_ari), "mBO": float(overlap)}


def _picture(model: WorldModel, data: EpisodeFile, path: Path) -> None:
    """Rows of frame, reconstruction and one mask per slot, at three times their size."""
    frames, _ = _test_frames(data, PICTURE_FRAMES)
    slots = _encode(model, frames)
    drawn, masks = model.decode(Latent(slots, torch.zeros(len(slots), model.config.proprio_dim)), frames.shape[1])
    grey = (masks * 255).round().to(torch.uint8).unsqueeze(-1).expand(-1, -1, -1, -1, 3).numpy()
    panels = np.concatenate([frames[:, None], drawn.numpy()[:, None], grey], axis=1)
    picture = np.concatenate([np.concatenate(list(row), axis=1) for row in panels], axis=0)
    with atomic(path) as temporary:
        iio.imwrite(temporary, picture.repeat(3, axis=0).repeat(3, axis=1), extension=path.suffix)
