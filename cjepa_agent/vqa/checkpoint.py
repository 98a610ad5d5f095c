"""Models that answer questions as files: ``config.json``, ``model.safetensors`` and a model card, ``README.md``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cjepa_agent.files import plain, read_json, write_json
from cjepa_agent.hub import find_weights
from cjepa_agent.provenance import git_commit, package_version
from cjepa_agent.tensors import load_tensors, save_tensors
from cjepa_agent.vqa.aloe import ALOEConfig
from cjepa_agent.vqa.answerer import Answerer
from cjepa_agent.vqa.grounded import GroundedALOEConfig
from configs.kinds import of_kind
from envs.files import atomic

BUNDLED = ("clevrer-aloe", "clevrer-aloe-predicted", "clevrer-aloe-pixels")
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
MODEL_TYPE = "cjepa_agent.aloe"
AnyALOEConfig = ALOEConfig | GroundedALOEConfig
MODEL_CARD = """---
library_name: cjepa-agent
license: mit
tags: [visual-question-answering, object-centric, clevrer]
---
# {title}

Answers CLEVRER's questions from {slots} object slots of {slot_dim} numbers per frame. Made with cjepa-agent; ALOE is
that of arXiv 2012.08508.{grounded}

```bash
python -m cjepa_agent.evaluate task=vqa weights=<this folder or Hub id> data=<CLEVRER data set> slots=<its slots>
```

| | |
| --- | --- |
| reads | {frames} frames, {tubelet} to a token |
| transformer | {layers} layers, width {width}, {heads} heads |
| parameters | {parameters:,} |
| slots made by | {makers} |
| package version, commit | {version}, {git_commit} |

## Training

```json
{training}
```
"""
GROUNDED_CARD = """
It has learned from annotations of the training videos, too (names, motion and collisions), and from the programs of
descriptive training questions (what is asked about, and when), not from answers alone as the published model, and takes
what led to what from the collisions it perceives, by the rule of CLEVRER's causal graph."""


def save(model: Answerer, folder: Path, training: Mapping[str, Any]) -> None:
    """Write the files of a model.

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
    with atomic(folder / CARD) as temporary:
        temporary.write_text(_card(model, config), encoding="utf-8")
    write_json(folder / CONFIG, config)


def _card(model: Answerer, config: Mapping[str, Any]) -> str:
    grounded = isinstance(model.config, GroundedALOEConfig)
    return MODEL_CARD.format(
        **config["model"],
        **{name: config[name] for name in ("slots", "slot_dim", "version")},
        title="ALOE with grounding" if grounded else "ALOE",
        grounded=GROUNDED_CARD if grounded else "",
        parameters=sum(weight.numel() for weight in model.parameters()),
        makers=json.dumps(config["training"].get("slots", "unknown"), default=plain),
        git_commit=config["git_commit"] or "unknown",
        training=json.dumps(config["training"], indent=2, default=plain),
    )


def find(name_or_path: str | Path) -> Path:
    """The folder of a model: itself, one of ``BUNDLED``, or downloaded from the Hub.

    Raises:
        FileNotFoundError: there is none.
        ValueError: see ``find_weights``.
    """
    return find_weights(name_or_path, BUNDLED, [CONFIG, WEIGHTS, CARD])


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
        kinds: dict[str, type[AnyALOEConfig]] = {kind.kind: kind for kind in (ALOEConfig, GroundedALOEConfig)}
        sizes = of_kind("model", kinds, config["model"])
        model = sizes.build(int(config["slots"]), int(config["slot_dim"])).eval()
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} is not a configuration of ALOE: {error!r}") from error
    model.load_state_dict(load_tensors(folder / WEIGHTS, model.state_dict()), strict=True)
    return model
