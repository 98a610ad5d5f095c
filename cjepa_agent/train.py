"""``python -m cjepa_agent.train``: train slot encoder, predictor or question answering; resumes a killed run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from cjepa_agent.checkpoint import Checkpoint
from cjepa_agent.data.episodes import open_episodes
from cjepa_agent.data.slot_data import open_slots
from cjepa_agent.data.video_slots import VideoSlots
from cjepa_agent.encoders.autoencoder import RECIPE, SlotAutoencoder
from cjepa_agent.encoders.kinds import EncoderConfig, TrainedEncoderConfig
from cjepa_agent.files import read_json
from cjepa_agent.paths import cache_folder
from cjepa_agent.predictors.cjepa import PredictorConfig
from cjepa_agent.predictors.kinds import AnyPredictorConfig
from cjepa_agent.predictors.masking import MaskConfig
from cjepa_agent.provenance import settings_record
from cjepa_agent.training.ctt import CTTConfig
from cjepa_agent.training.encoder_stage import EncoderStage
from cjepa_agent.training.loop import Run, TrainerConfig
from cjepa_agent.training.objectives import SlotTrainingConfig
from cjepa_agent.training.predictor_stage import DynamicsTrainingConfig, PredictorStage
from cjepa_agent.training.vqa_stage import VQAStage, VQATrainingConfig
from cjepa_agent.vqa.aloe import ALOEConfig
from cjepa_agent.vqa.checkpoint import AnyALOEConfig, find
from configs.command import command
from envs.clevrer.dataset import Dataset


@dataclass(frozen=True)
class TrainConfig:
    """Train one stage: ``stage=encoder`` (slots from frames), then extract slots, then ``stage=predictor``.

    ``stage=vqa trainer=vqa`` learns to answer CLEVRER questions from slots.

    Attributes:
        stage: ``encoder``, ``predictor`` or ``vqa``.
        data: episode file, HDF5, or folder of a CLEVRER data set; a predictor of slots of videos needs it for
            ``dynamics.image_weight`` alone.
        slots: folder of extracted slots (predictor, vqa).
        out: folder of logs, running checkpoint and result; an existing run there is resumed.
        init: what a new run starts from, none by default: a checkpoint with a predictor (folder, Hub id or bundled
            name), or for ``stage=vqa`` what that stage has written to its folder ``checkpoint``, or such a Hub id.
        encoder: architecture of the encoder.
        predictor: architecture of the predictor.
        mask: which history cells are hidden while C-JEPA's predictor trains; nothing is from the others.
        slot_training: how slots or patches are learned.
        dynamics: what the predictor is trained on.
        ctt: terms of Causal Transformation Theory beside C-JEPA's loss.
        aloe: architecture of what answers questions.
        vqa: what answers are learned from, and how they are validated.
        trainer: optimisation.
    """

    stage: Literal["encoder", "predictor", "vqa"] = "predictor"
    data: Path = field(default_factory=lambda: cache_folder() / "pusht.h5")
    slots: Path = field(default_factory=lambda: cache_folder() / "pusht_slots")
    out: Path = field(default_factory=lambda: cache_folder() / "run")
    init: str | None = None
    encoder: TrainedEncoderConfig = field(default_factory=EncoderConfig)
    predictor: AnyPredictorConfig = field(default_factory=PredictorConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    slot_training: SlotTrainingConfig = field(default_factory=SlotTrainingConfig)
    dynamics: DynamicsTrainingConfig = field(default_factory=DynamicsTrainingConfig)
    ctt: CTTConfig = field(default_factory=CTTConfig)
    aloe: AnyALOEConfig = field(default_factory=ALOEConfig)
    vqa: VQATrainingConfig = field(default_factory=VQATrainingConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


def train(config: TrainConfig) -> None:
    """Run the stage to its end."""
    make_run(config).fit()


def make_run(config: TrainConfig) -> Run:
    """The run of the stage, as far as it has got."""
    stages: dict[str, Callable[[TrainConfig], EncoderStage | PredictorStage | VQAStage]] = {
        "encoder": _encoder_stage,
        "predictor": _predictor_stage,
        "vqa": _vqa_stage,
    }
    config = replace(config, trainer=config.trainer.resolved())
    stage = stages[config.stage](config)
    # Paths are kept by their last part alone; what lies there is told apart by what it was made of.
    inputs = {name: value for name, value in stage.recipe.items() if name != "command"}
    return Run(stage, config.trainer, config.out, {**settings_record(config), "inputs": inputs})


def _encoder_stage(config: TrainConfig) -> EncoderStage:
    if config.init is not None:
        raise ValueError(f"stage=encoder starts anew and takes no init, got {config.init}; leave it out")
    data = open_episodes(config.data)
    recipe = {"command": settings_record(config), "dataset": data.attrs}
    return EncoderStage(data, config.encoder, config.slot_training, config.trainer.seed, recipe)


def _predictor_stage(config: TrainConfig) -> PredictorStage:
    slots = open_slots(config.data, config.slots)
    recipe = {"command": settings_record(config), "dataset": slots.origin, "encoder": read_json(config.slots / RECIPE)}
    autoencoder = SlotAutoencoder.load(config.slots)
    autoencoder.require_slots(slots.slots.shape[1:], config.slots)
    init = Checkpoint.from_pretrained(config.init) if config.init else None
    if init:
        recipe["init"] = {"version": init.version, "commit": init.commit, "training": init.training}
    return PredictorStage(
        slots,
        autoencoder,
        config.predictor,
        config.mask,
        config.dynamics,
        config.trainer,
        recipe,
        init,
        config.ctt,
    )


def _vqa_stage(config: TrainConfig) -> VQAStage:
    slots = VideoSlots(config.slots)
    recipe = {"command": settings_record(config), "slots": slots.identity, "frames": slots.frames}
    init = find(config.init) if config.init else None
    return VQAStage(Dataset(config.data), slots, config.aloe, config.vqa, config.trainer.seed, recipe, init)


main = command("train", TrainConfig, train)

if __name__ == "__main__":
    main()
