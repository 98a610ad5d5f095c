"""Models that answer questions as files: ``config.json`` and ``model.safetensors``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dacite

from cjepa_agent.files import read_json, write_json
from cjepa_agent.hub import find_weights
from cjepa_agent.provenance import git_commit, package_version
from cjepa_agent.tensors import load_tensors, save_tensors
from cjepa_agent.vqa.aloe import ALOEConfig
from cjepa_agent.vqa.answerer import Answerer
from cjepa_agent.vqa.grounded import GroundedALOEConfig

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
MODEL_TYPE = "cjepa_agent.aloe"
AnyALOEConfig = ALOEConfig | GroundedALOEConfig


def save(model: Answerer, folder: Path, training: Mapping[str, Any]) -> None:
    """Write ``config.json`` and ``model.safetensors``.

    Args:
        model: any model.
        folder: made if absent.
        training: kept as the record of the training, anything that JSON can hold.
    """
    save_tensors(folder / WEIGHTS, model.state_dict())
    config = {
        "model_type": MODEL_TYPE,
        "version": package_version(),
        "git_commit": git_commit(),
        "model": asdict(model.config),
        "slots": model.n_slots,
        "slot_dim": model.slot_dim,
        "training": dict(training),
    }
    write_json(folder / CONFIG, config)


def find(name_or_path: str | Path) -> Path:
    """The folder of a model: itself, or downloaded from the Hub; raises FileNotFoundError if there is none."""
    return find_weights(name_or_path, (), [CONFIG, WEIGHTS, CARD])


def load(folder: Path) -> Answerer:
    """Read what ``save`` wrote, strictly, in evaluation mode.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is truncated, belongs to another kind of model, or the two do not fit.
    """
    path = folder / CONFIG
    config = read_json(path)
    found = config.get("model_type") if isinstance(config, dict) else None
    if found != MODEL_TYPE:
        raise ValueError(f"{path} belongs to another kind of model: model_type is {found!r}, expected {MODEL_TYPE!r}")
    try:
        values = config["model"]
        kinds: dict[Any, type[AnyALOEConfig]] = {kind.kind: kind for kind in (ALOEConfig, GroundedALOEConfig)}
        sizes = dacite.from_dict(kinds[values["kind"]], values, dacite.Config(strict=True, cast=[float]))
        model = sizes.build(int(config["slots"]), int(config["slot_dim"])).eval()
    except (dacite.DaciteError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} is not a configuration of ALOE: {error!r}") from error
    model.load_state_dict(load_tensors(folder / WEIGHTS, model.state_dict()), strict=True)
    return model
