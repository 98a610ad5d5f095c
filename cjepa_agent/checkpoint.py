"""Checkpoints: a folder that holds a world model, what it was normalised with, and where it comes from.

| file | holds |
| --- | --- |
| ``config.json`` | architecture, package version, training recipe, git commit |
| ``model.safetensors`` | encoder, decoder and predictor |
| ``processors.safetensors`` | normalisation and action prior, fitted on training episodes |
| ``README.md`` | model card |
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import HfApi
from torch import Tensor

from cjepa_agent.encoders.given_slots import GivenSlotsConfig
from cjepa_agent.encoders.kinds import PRIVILEGED
from cjepa_agent.encoders.patches import PatchTokenConfig
from cjepa_agent.files import plain, read_json
from cjepa_agent.hub import find_weights
from cjepa_agent.processor import SCALES
from cjepa_agent.provenance import git_commit, package_version, settings_record
from cjepa_agent.tensors import check_tensors, load_tensors, read_tensors, save_tensors
from cjepa_agent.world_model import WorldModel, WorldModelConfig
from envs.files import atomic
from planners import ActionPrior

BUNDLED = ("pusht", "pusht-unmasked", "clevrer", "clevrer-unmasked", "clevrer-state")  # the first is the default
MODEL_TYPE = "cjepa_agent.world_model"
CONFIG, MODEL, PROCESSORS, CARD = "config.json", "model.safetensors", "processors.safetensors", "README.md"
PROCESSOR, PRIOR = "processor.", "action_prior."  # prefixes of the tensors in processors.safetensors
PRIVILEGED_CARD = """
**Privileged, for debugging and upper bounds only:** slots come from the simulator's true state by a fixed map, not from
pixels.
"""
PLANNING_USE = """```python
import gymnasium as gym
from cjepa_agent.agent import CJEPAAgent

env = gym.make("PushT-v0", task="goal_state")
agent = CJEPAAgent.from_pretrained("<this folder or Hub id>", objective="released")
observation, _ = env.reset(seed=0)
action, _ = agent.predict(observation)
```"""
VIDEO_USE = """```bash
python -m cjepa_agent.rollout checkpoint=<this folder> slots=<slots of videos> out=<folder>
```"""
PRIOR_TENSORS = ("mean", "basis", "low", "high")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A world model with all that is needed to plan with it.

    Attributes:
        model: in evaluation mode when loaded.
        prior: where candidate action blocks come from, (A,) numbers per block; None for a model without actions.
        training: the recipe it was trained with, anything that JSON can hold.
        version: of the package that trained it.
        commit: git commit that trained it, None if unknown.
    """

    model: WorldModel
    prior: ActionPrior | None
    training: Mapping[str, Any] = field(default_factory=dict)
    version: str = field(default_factory=package_version)
    commit: str | None = field(default_factory=git_commit)

    def __post_init__(self) -> None:
        width, own = self.model.config.action_dim, self.prior.action_dim if self.prior else 0
        if own != width:
            raise ValueError(
                f"the action prior has blocks of {own} numbers, the world model of {width}; "
                f"fit the prior to blocks of {self.model.config.action_block} actions"
            )

    @property
    def action_prior(self) -> ActionPrior:
        """The prior; raises ValueError for a model without actions, with which nothing can be planned."""
        if self.prior is None:
            raise ValueError(
                "this checkpoint predicts videos and knows no actions, so it cannot plan; "
                "use it with `python -m cjepa_agent.rollout`"
            )
        return self.prior

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the four files to ``folder``, which is made if needed; other files in it stay.

        All are written under temporary names first, so that a process that is killed while it writes leaves the old
        checkpoint intact; only between the renamings of the four it does not.
        """
        folder = Path(folder)
        config = {
            "model_type": MODEL_TYPE,
            "version": self.version,
            "git_commit": self.commit,
            "model": settings_record(self.model.config),
            "training": dict(self.training),
        }
        card, weights, processors = model_card(config), *self._tensors()
        with ExitStack() as stack:
            path = {name: stack.enter_context(atomic(folder / name)) for name in (CONFIG, CARD, MODEL, PROCESSORS)}
            path[CONFIG].write_text(json.dumps(config, indent=2, default=plain) + "\n", encoding="utf-8")
            path[CARD].write_text(card, encoding="utf-8")
            save_tensors(path[MODEL], weights)
            save_tensors(path[PROCESSORS], processors)

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path | None = None, *, revision: str | None = None, token: str | None = None
    ) -> Checkpoint:
        """Load, strictly: every tensor must be there, in its shape, finite, and no other.

        Args:
            name_or_path: a folder, a Hub id ``owner/name``, or one of ``BUNDLED``, the weights that come with the
                package; None means the first of these.
            revision: branch, tag or commit of a Hub id.
            token: for private repositories on the Hub.

        Raises:
            FileNotFoundError: no such folder or Hub repository, or a file is missing.
            ValueError: a file is truncated, foreign or does not fit the others; or the name is empty, or that of both
                bundled weights and a folder.
        """
        files = [CONFIG, MODEL, PROCESSORS, CARD]
        folder = find_weights(name_or_path, BUNDLED, files, revision, token)
        missing = [name for name in (CONFIG, MODEL, PROCESSORS) if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(f"{folder} is not a checkpoint: it lacks {', '.join(missing)}")
        config = _read_config(folder / CONFIG)
        try:
            model = WorldModel(config["model"]).eval()
        except (TypeError, RuntimeError, ValueError) as error:
            raise ValueError(f"{folder / CONFIG} describes no model that can be built: {error}") from error
        weights, buffers = _split(model.state_dict())
        processors, prior = _read_processors(folder / PROCESSORS, buffers)
        model.load_state_dict({**load_tensors(folder / MODEL, weights), **processors}, strict=True)
        return cls(model, prior, config["training"], config["version"], config["git_commit"])

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload to the Hub repository ``owner/name``, made if needed; returns the address of the commit."""
        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload checkpoint"))

    def _tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Contents of the two safetensors files."""
        weights, processors = _split(self.model.state_dict())
        prior = self.prior.tensors() if self.prior else {}
        return weights, {**processors, **{PRIOR + name: value for name, value in prior.items()}}


def _split(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A world model's tensors by the file they belong to: weights, and normalisation."""
    weights = {name: value for name, value in state.items() if not name.startswith(PROCESSOR)}
    return weights, {name: value for name, value in state.items() if name.startswith(PROCESSOR)}


def _read_config(path: Path) -> dict[str, Any]:
    """The parsed ``config.json`` with ``model`` turned into a WorldModelConfig."""
    config = read_json(path)
    found = config.get("model_type") if isinstance(config, dict) else None
    if found != MODEL_TYPE:
        raise ValueError(f"{path} belongs to another kind of model: model_type is {found!r}, expected {MODEL_TYPE!r}")
    missing = [key for key in ("version", "git_commit", "model", "training") if key not in config]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    if not isinstance(config["training"], dict):
        raise ValueError(f"{path}: training must be keys and values, got {config['training']!r}")
    try:
        return {**config, "model": WorldModelConfig.from_dict(config["model"])}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_processors(path: Path, buffers: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], ActionPrior | None]:
    """Normalisation and, unless actions have no numbers, action prior."""
    tensors = read_tensors(path)
    scales = {name: tensors[PROCESSOR + name] for name in SCALES if PROCESSOR + name in tensors}
    if not_positive := [PROCESSOR + name for name, value in scales.items() if not (value > 0).all()]:
        raise ValueError(f"{path}: {not_positive} must be positive")
    if not buffers[PROCESSOR + "action_mean"].numel():
        check_tensors(path, tensors, buffers)
        return tensors, None
    # ActionPrior checks its own tensors: the number of components is free, and bounds may be infinite.
    prior = {name: tensors.pop(PRIOR + name) for name in PRIOR_TENSORS if PRIOR + name in tensors}
    check_tensors(path, tensors, buffers)
    if wrong := {PRIOR + name: str(part.dtype) for name, part in prior.items() if part.dtype != torch.float32}:
        raise ValueError(f"{path} holds no valid action prior: expected float32, got {wrong}")
    missing = sorted(PRIOR + name for name in PRIOR_TENSORS if name not in prior)
    if missing:
        raise ValueError(f"{path} does not fit config.json: missing tensors {missing}")
    try:
        return tensors, ActionPrior(**prior)
    except ValueError as error:
        raise ValueError(f"{path} holds no valid action prior: {error}") from error


def model_card(config: Mapping[str, Any]) -> str:
    """README.md of a checkpoint, from the contents of its ``config.json``."""
    model = config["model"]
    world_model = WorldModelConfig.from_dict(model)
    encoder, predictor, system = world_model.encoder, model["predictor"], world_model.title
    what, parts, centred = "An object-centric world model", "object slots", ", object-centric"
    if isinstance(encoder, PatchTokenConfig):
        what, parts, centred = "A world model of patches", "patch tokens", ""
    if isinstance(encoder, GivenSlotsConfig):
        frames = "none: the encoder is not in this folder"
    elif encoder.kind in PRIVILEGED:
        frames = "none: the encoder reads the true state"
    else:
        frames = f"{encoder.image_size} x {encoder.image_size} px; other sizes are resized"
    # What a reader must not miss: such a model scores higher than any that looks at pixels.
    privileged = PRIVILEGED_CARD if encoder.kind in PRIVILEGED else ""
    block = model["action_block"]
    if model["env_action_dim"]:
        use, tags = PLANNING_USE, ", planning, reinforcement-learning, push-t]\npipeline_tag: reinforcement-learning"
        task = f"how they move under action blocks of\n{block} actions"
        if privileged:
            use += "\n`predict` needs the true state: `agent.predict({**observation, **info})`."
    else:
        use, tags, task = VIDEO_USE, ", video-prediction, clevrer]", f"how a video goes on,\nin steps of {block} frames"
    return f"""---
library_name: cjepa-agent
license: mit
tags: [world-model, jepa{centred}{tags}
---
# {system} world model
{privileged}
{what}: an encoder turns a frame into {encoder.n_slots} {parts} of
{encoder.slot_dim} numbers, and a transformer ({system}) predicts {task}. Made with cjepa-agent, an
implementation of C-JEPA (arXiv 2602.11389).

{use}

| | |
| --- | --- |
| frames | {frames} |
| predictor | depth {predictor["depth"]}, width {predictor["width"]}, {predictor["heads"]} heads |
| history | 1 to {predictor["history"]} frames |
| object roles | {", ".join(f"{name}: slot {slot}" for name, slot in model["roles"].items()) or "unknown"} |
| package version, commit | {config["version"]}, {config["git_commit"] or "unknown"} |

## Training

```json
{json.dumps(config["training"], indent=2, default=plain)}
```
"""
