"""``stage=vqa``: questions answered from frozen slots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cjepa_agent.data.video_slots import VideoSlots
from cjepa_agent.encoders.autoencoder import SlotAutoencoder
from cjepa_agent.files import read_json
from cjepa_agent.reading.slot_reader import slot_reader
from cjepa_agent.vqa.answerer import Answerer, losses, predict
from cjepa_agent.vqa.checkpoint import CONFIG, AnyALOEConfig, load, save
from cjepa_agent.vqa.data import SlotQuestions
from cjepa_agent.vqa.grounded import GroundedALOE
from cjepa_agent.vqa.grounding import Annotations, grounding_losses, referent_losses
from cjepa_agent.vqa.intervened import Intervened
from envs.clevrer.dataset import Dataset
from envs.clevrer.questions.files import TYPES


@dataclass(frozen=True)
class VQATrainingConfig:
    """What is read to learn answers, and how they are validated.

    Attributes:
        videos: validation videos whose questions are asked, evenly from all; 0 for all.
        intervened: folder of predictions without each object (``python -m cjepa_agent.rollout remove=drop``), which
            counterfactual questions read in place of the observed video; none by default.
        shuffle: put the slots of each video in a random order, the same in all of its frames, each time that it is read
            in training. Which slot an object is in means nothing; this is not in the published protocol.
        questions: of one video in a batch, or all where it has fewer, which share what is read of it; 1 as published.
        limit: videos of each split, from the first, that are asked about; 0 for all.
    """

    videos: int = 200
    intervened: Path | None = None
    shuffle: bool = True
    questions: int = 1
    limit: int = 0

    def __post_init__(self) -> None:
        for name in ("videos", "limit"):
            if getattr(self, name) < 0:
                raise ValueError(f"vqa.{name} must be 0 or more, got {getattr(self, name)}")
        if self.questions < 1:
            raise ValueError(f"vqa.questions must be positive, got {self.questions}")


class VQAStage:
    """Draws training questions, each with a start of its frames.

    Args:
        data: a CLEVRER data set with training and validation questions.
        slots: of the videos of both.
        config: architecture.
        vqa: how to validate.
        seed: of the initial weights, and of dropout.
        recipe: kept with the weights as the record of the training.
        init: folder of a trained ALOE of the same architecture to train on, whatever its dropout; None for random
            weights.

    Raises:
        FileNotFoundError: nothing to start from there, or no encoder belongs to slots that are to be grounded.
        ValueError: questions, slots and what to start from do not fit, or objects cannot be read out of the slots.
    """

    def __init__(
        self,
        data: Dataset,
        slots: VideoSlots,
        config: AnyALOEConfig,
        vqa: VQATrainingConfig,
        seed: int,
        recipe: Mapping[str, Any],
        init: Path | None = None,
    ) -> None:
        intervened = Intervened(vqa.intervened, data, slots) if vqa.intervened else None
        if intervened:
            intervened.require_predictor_of(slots)
        self.train = SlotQuestions(data.questions("train").first(vqa.limit), slots, config.frames, intervened)
        held_out = data.questions("validation").first(vqa.limit)
        count = min(vqa.videos or len(held_out.scenes), len(held_out.scenes))
        chosen = [held_out.scenes[number * len(held_out.scenes) // count] for number in range(count)]
        self.held_out = SlotQuestions(replace(held_out, scenes=chosen), slots, config.frames, intervened)
        self.vqa = vqa
        self.recipe = {
            **recipe,
            "intervened": intervened.identity if intervened else None,
            "intervened_frames": intervened.frames if intervened else None,
        }
        torch.manual_seed(seed)
        self.model = config.build(*slots.array.shape[2:])
        self.annotations = None
        if isinstance(self.model, GroundedALOE):
            reader = intervened.reader if intervened else slot_reader(SlotAutoencoder.load(slots.folder), slots, data)
            self.annotations = Annotations(data, slots, reader)
        if init:
            before = load(init)
            found = replace(before.config, dropout=config.dropout), before.n_slots, before.slot_dim
            expected = config, self.model.n_slots, self.model.slot_dim
            if found != expected:
                raise ValueError(f"init is {found}, asked for is {expected}; set the same aloe=, or other slots")
            self.model.load_state_dict(before.state_dict())
            self.recipe["init"] = read_json(init / CONFIG)["training"]

    @property
    def hidden_matrices(self) -> list[nn.Parameter]:
        """Weight matrices of the transformer."""
        return self.model.hidden_matrices

    def loss(
        self, model: nn.Module, step: int, batch: int, rows: slice, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """See ``losses`` and, of models that perceive, ``grounding_losses``; ``batch`` counts questions.

        Raises:
            ValueError: the batch, or a process's part of it, is no whole number of videos.
        """
        share = self.vqa.questions
        if batch % share or (rows.stop - rows.start) % share:
            raise ValueError(f"trainer.batch of a process, {rows.stop - rows.start}, is not a multiple of {share}")
        videos, rows = batch // share, slice(rows.start // share, rows.stop // share)
        orders = torch.rand(videos, self.model.n_slots, generator=generator)[rows].argsort(1)
        drawn = torch.randint(len(self.train), (videos,), generator=generator)[rows].tolist()
        starts = torch.randint(self.train.starts, (videos,), generator=generator)[rows].numpy()
        lots = torch.rand(videos, self.train.most, generator=generator)[rows].numpy()
        chosen = [self._with_others(question, lot) for question, lot in zip(drawn, lots, strict=True)]
        questions = np.concatenate(chosen)
        counts = [len(own) for own in chosen]
        readings = self.train.readings(questions, starts.repeat(counts))
        device = next(model.parameters()).device
        asked = self.train.batch(questions, readings).to(device)
        order = torch.arange(self.model.n_slots, device=device).expand(len(asked.slots), -1)
        if self.vqa.shuffle:
            video_of = dict(zip(readings, np.arange(len(chosen)).repeat(counts).tolist(), strict=True))
            order = orders[[video_of[reading] for reading in asked.readings]].to(device)
            asked = asked._replace(slots=asked.slots.take_along_dim(order[:, None, :, None], 2))
        logits = model(asked.slots, asked.words, asked.owner, asked.descriptive)
        terms = losses(logits, asked)
        if self.annotations:
            tubelet = self.model.config.tubelet
            grounding = self.annotations.of(asked.readings, tubelet, order)
            referents = self.annotations.referents(asked, tubelet, order)
            grounded = {**grounding_losses(logits, asked, grounding), **referent_losses(logits, referents)}
            terms = {**terms, **grounded, "total": terms["total"] + sum(grounded.values())}
        return terms

    def _with_others(self, question: int, lot: NDArray[np.float32]) -> NDArray[np.int64]:
        """A question and others about its video, as ``lot`` wills."""
        own = self.train.of_scene[int(self.train.scene[question])]
        others = own[own != question]
        return np.append(others[lot[: len(others)].argsort()][: self.vqa.questions - 1], question)

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Shares of the validation questions answered right: of each type, and of all."""
        right = self.held_out.right(predict(_answerer(model), self.held_out))
        shares = {
            type: float(right[self.held_out.type == number].mean())
            for number, type in enumerate(TYPES)
            if (self.held_out.type == number).any()
        }
        return {**shares, "all": float(right.mean())}

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the model as the folder ``checkpoint``."""
        save(_answerer(model), folder / "checkpoint", self.recipe)


def _answerer(model: nn.Module) -> Answerer:
    if not isinstance(model, Answerer):
        raise TypeError(f"expected the model that was trained, got {type(model).__name__}")
    return model
