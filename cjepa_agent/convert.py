"""``python -m cjepa_agent.convert SOURCE OUT``: the authors' files to those of this package, and slots back."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from tqdm import tqdm

from cjepa_agent.checkpoint import Checkpoint
from cjepa_agent.data.episode_folders import read_folder
from cjepa_agent.data.episodes import EpisodeFile, write_episodes
from cjepa_agent.encoders.autoencoder import RECIPE, SlotAutoencoder
from cjepa_agent.encoders.given_slots import GivenSlotsConfig
from cjepa_agent.extract import load_encoder
from cjepa_agent.files import new_folder, write_json
from cjepa_agent.interop.authors import Part, released_predictor, slot_autoencoder, split
from cjepa_agent.interop.pickles import memory_needed, read_pickle
from cjepa_agent.interop.slot_pickles import as_arrays, episodes_from_meta, slots_from_pickle, slots_to_pickle
from cjepa_agent.interop.state_dicts import Weights, weights_of
from cjepa_agent.predictors.released import ReleasedPredictor
from cjepa_agent.world_model import WorldModel, WorldModelConfig
from configs.command import command
from planners import ActionPrior

# Mean and deviation of DINO-WM's Push-T training set (datasets/pusht_dset.py), which pusht_expert_train is.
ACTION_MEAN, ACTION_STD = (-0.0087, 0.0068), (0.2019, 0.2002)
PROPRIO_MEAN = (236.6155, 264.5674, -2.93032027, 2.54307914)
PROPRIO_STD = (101.1202, 87.0112, 74.84556075, 74.14009094)
ACTION_WIDTH = 2
STILL = 1e-6  # deviation of what never changes
LARGE = 10**9  # bytes of memory that are worth a word before they are taken


@dataclass(frozen=True)
class ConvertConfig:
    """Reads a file of C-JEPA's authors, of VideoSAUR or StoSAVi, says what it is, and writes it as a folder.

    SOURCE may be: weights (a state dict, a checkpoint with ``state_dict``, a Lightning checkpoint or a pickled module)
    of a C-JEPA predictor, of VideoSAUR, of StoSAVi or of a whole Push-T world model; slots or rollouts
    ``{split: {"0_pixels.mp4" or "video_00000.mp4": (T, S, D)}}``, of CLEVRER if videos are numbered as there and
    equally long; ``pusht_expert_*_meta.pkl``; a dataset folder of stable-worldmodel (tables beside videos or pictures);
    or a slots folder of this package, which is written back as such a pickle. No code in any file is executed.

    Attributes:
        source: file or folder; the first word without a key.
        out: folder to write, which must not exist yet (a .pkl file for a slots folder); the second word.
        encoder: folder of a converted encoder, or a checkpoint with one. It goes with a predictor, which can plan only
            with it, and with slots. Without it both can be trained and rolled out, but no frame can be read or drawn.
        data: episode file (HDF5) that normalisation of a checkpoint is fitted on (else it is DINO-WM's published one),
            or that a slots folder without video names belongs to.
        n_slots: object slots; 0 where the file tells, or 4 for a predictor with action nodes and 7 for one without.
        heads: attention heads of a predictor, which its weights do not tell.
        history: frames of history of a predictor; 0 where the rows of its time embedding tell (4: 3 + 1, 16: 6 + 10).
        frameskip: frames of a video from one step to the next of a predictor without action nodes.
    """

    source: str = ""
    out: str = ""
    encoder: str = ""
    data: str = ""
    n_slots: int = 0
    heads: int = 16
    history: int = 0
    frameskip: int = 2

    def __post_init__(self) -> None:
        if min(self.n_slots, self.history) < 0 or min(self.heads, self.frameskip) < 1:
            raise ValueError(
                f"n_slots and history must be 0 or more, heads and frameskip 1 or more, got {self.n_slots}, "
                f"{self.history}, {self.heads} and {self.frameskip}"
            )


def convert(config: ConvertConfig) -> str:
    """Convert and say what was found and written.

    Raises:
        FileNotFoundError: no such source.
        FileExistsError: something is at ``out`` already.
        ValueError: the source is truncated, malicious, of an unknown kind or not of the expected sizes.
    """
    if not config.source or not config.out:
        raise ValueError("give what to convert and where to: python -m cjepa_agent.convert SOURCE OUT")
    source, out = Path(config.source).expanduser(), Path(config.out).expanduser()
    if out.exists():
        raise FileExistsError(f"{out} exists already; choose another place or delete it")
    if (source / "slots.json").is_file():
        return slots_to_pickle(source, out, config.data)
    if source.is_dir():
        return _episodes_from_folder(source, out)
    if source.is_file() and h5py.is_hdf5(source):
        episodes = EpisodeFile(source)
        return (
            f"{source}: a dataset of {len(episodes)} episodes that all commands read with data={source}; nothing to do"
        )
    if source.is_file() and (needed := memory_needed(source)) > LARGE:
        print(
            f"{source}: this format cannot be read in parts; reading takes about {needed / 1e9:.0f} GB of memory",
            file=sys.stderr,
        )
    value = read_pickle(source, objects=True)
    arrays = as_arrays(value)
    if arrays is None:
        return _weights(weights_of(value, source), source, out, config)
    dimensions = {array.ndim for part in arrays.values() for array in part.values()}
    if dimensions == {3}:
        return slots_from_pickle(arrays, source, out, config.encoder)
    if dimensions == {2}:
        return episodes_from_meta(source, out)
    raise ValueError(
        f"{source} holds arrays of {sorted(dimensions)} dimensions; expected slots (T, S, D) or rows (T, width)"
    )


def _episodes_from_folder(source: Path, out: Path) -> str:
    dataset = read_folder(source)
    with new_folder(out) as folder:
        bar = tqdm(dataset.episodes, total=dataset.count, unit="episode", mininterval=2.0)
        write_episodes(folder / "episodes.h5", bar, {"source": source.name})
        EpisodeFile(folder / "episodes.h5")
    left_out = f", without {', '.join(dataset.left_out)}" if dataset.left_out else ""
    return (
        f"{source}: {dataset.kind} of {dataset.count} episodes: {', '.join(dataset.columns)}{left_out}\n"
        f"written: {out / 'episodes.h5'}"
    )


def _weights(weights: Weights, source: Path, out: Path, config: ConvertConfig) -> str:
    parts = split(source, weights.tensors)
    found = f"{source}: {weights.wrapping} with {' and '.join(parts)}"
    recipe = {"source": source.name, "wrapping": weights.wrapping}
    encoder = _encoder(parts, config, recipe)
    if "predictor" not in parts:
        if encoder is None:
            raise ValueError(f"{source} holds nothing to convert")
        with new_folder(out) as folder:
            encoder.save(folder)
            write_json(folder / RECIPE, recipe)
        return f"{found}\nwritten: {out} (encoder folder, for extract encoder={out})"
    n_slots = config.n_slots or (encoder.config.n_slots if encoder else _usual_slots(parts["predictor"]))
    predictor = released_predictor(parts["predictor"], n_slots, config.heads, config.history or None)
    advice = f"evaluate weights={out}" if predictor.nodes else f"rollout checkpoint={out}"
    if encoder is None:
        encoder = SlotAutoencoder(GivenSlotsConfig(n_slots, predictor.config.width))
        advice = f"train init={out}; with encoder= also for planning" if predictor.nodes else advice
    checkpoint = _checkpoint(predictor, encoder, config, recipe)
    with new_folder(out) as folder:
        checkpoint.save_pretrained(folder)
    return f"{found}\nwritten: {out} (checkpoint folder, for {advice})"


def _usual_slots(part: Part) -> int:
    return 4 if "action_encoder.weight" in part.tensors else 7


def _encoder(parts: Mapping[str, Part], config: ConvertConfig, recipe: dict[str, Any]) -> SlotAutoencoder | None:
    """The encoder in the file, or that of ``encoder=``."""
    for kind in ("videosaur", "stosavi"):
        if kind in parts:
            n_slots = config.n_slots or (_usual_slots(parts["predictor"]) if "predictor" in parts else None)
            encoder, has_decoder = slot_autoencoder(kind, parts[kind], n_slots)
            if not has_decoder:
                recipe["decoder"] = "random, since the file has none: drawings of slots mean nothing"
            return encoder
    return load_encoder(Path(config.encoder))[0] if config.encoder else None


def _checkpoint(
    predictor: ReleasedPredictor, encoder: SlotAutoencoder, config: ConvertConfig, recipe: dict[str, Any]
) -> Checkpoint:
    """A world model of the authors' networks: of Push-T with action nodes, of CLEVRER's videos without."""
    if encoder.config.n_slots != predictor.n_slots or encoder.config.slot_dim != predictor.config.width:
        raise ValueError(
            f"the encoder makes {encoder.config.n_slots} slots of {encoder.config.slot_dim} numbers, the predictor "
            f"takes {predictor.n_slots} of {predictor.config.width}"
        )
    if not predictor.nodes:
        videos = WorldModelConfig(encoder.config, predictor.config, 0, 0, config.frameskip)
        return Checkpoint(_world_model(videos, predictor, encoder), None, recipe)
    if predictor.action_dim % ACTION_WIDTH or predictor.proprio_dim != len(PROPRIO_MEAN):
        raise ValueError(
            f"the predictor takes blocks of {predictor.action_dim} and proprioception of {predictor.proprio_dim} "
            f"numbers; expected a multiple of {ACTION_WIDTH} and {len(PROPRIO_MEAN)}, as of Push-T"
        )
    block = predictor.action_dim // ACTION_WIDTH
    pusht = WorldModelConfig(encoder.config, predictor.config, predictor.proprio_dim, ACTION_WIDTH, block)
    model = _world_model(pusht, predictor, encoder)
    action, proprio = _normalisation(config.data)
    recipe["normalisation"] = Path(config.data).name if config.data else "DINO-WM's published means and deviations"
    mean, std = (torch.tensor(values, dtype=torch.float32).repeat(block) for values in action)
    for buffer, values in (("action_mean", mean), ("action_std", std)):
        getattr(model.processor, buffer).copy_(values)
    for buffer, values in zip(("proprio_mean", "proprio_std"), proprio, strict=True):
        getattr(model.processor, buffer).copy_(torch.tensor(values, dtype=torch.float32))
    # The authors' search is not bounded; the environment is, at five deviations from the mean.
    bound = torch.ones(predictor.action_dim)
    return Checkpoint(model, ActionPrior.standard(-bound, bound, mean=mean, std=std), recipe)


def _world_model(config: WorldModelConfig, predictor: ReleasedPredictor, encoder: SlotAutoencoder) -> WorldModel:
    model = WorldModel(config).eval()
    model.encoder.load_state_dict(encoder.encoder.state_dict())
    model.decoder.load_state_dict(encoder.decoder.state_dict())
    model.predictor.load_state_dict(predictor.state_dict())
    return model


def _normalisation(data: str) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """(mean, deviation) of actions and of proprioception; those of ``data`` over all rows, as the authors have them."""
    if not data:
        return (ACTION_MEAN, ACTION_STD), (PROPRIO_MEAN, PROPRIO_STD)
    episodes = EpisodeFile(data)
    action, proprio = (episodes.read_all(column).astype(np.float64) for column in ("action", "proprio"))
    if (action.shape[1], proprio.shape[1]) != (ACTION_WIDTH, len(PROPRIO_MEAN)):
        raise ValueError(
            f"{data} has actions of {action.shape[1]} and proprioception of {proprio.shape[1]} numbers; expected "
            f"{ACTION_WIDTH} and {len(PROPRIO_MEAN)}, as of Push-T"
        )
    return (action.mean(0), action.std(0).clip(min=STILL)), (proprio.mean(0), proprio.std(0).clip(min=STILL))


def _convert(config: ConvertConfig) -> None:
    print(convert(config))


run = command("convert", ConvertConfig, _convert)


def main() -> None:
    """The command; its first two words without a key are SOURCE and OUT."""
    sys.argv = [sys.argv[0], *with_keys(sys.argv[1:])]
    run()


def with_keys(arguments: list[str]) -> list[str]:
    """Arguments as Hydra takes them: the first two words without a key get those of SOURCE and OUT.

    Names of files that are there are words, since Lightning writes ``epoch=29.ckpt``.
    """
    words = [word for word in arguments if not word.startswith("-") and ("=" not in word or Path(word).exists())]
    rest = [word for word in arguments if word not in words]
    # Either may be given by its key, so that there are fewer words than names. As JSON strings, because Hydra gives a
    # meaning to many characters that paths have.
    keys = ("source", "out")[: len(words)]
    named = [f"{key}={json.dumps(word)}" for key, word in zip(keys, words[:2], strict=True)]
    return [*named, *words[2:], *rest]


if __name__ == "__main__":
    main()
