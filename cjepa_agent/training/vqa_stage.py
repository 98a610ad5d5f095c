"""``stage=vqa``: questions answered from frozen slots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cjepa_agent.files import read_json
from cjepa_agent.video_slots import VideoSlots
from cjepa_agent.vqa.aloe import ALOE, CONFIG, ALOEConfig, losses, predict
from cjepa_agent.vqa.data import SlotQuestions
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
    """

    videos: int = 200
    intervened: Path | None = None
    shuffle: bool = True

    def __post_init__(self) -> None:
        if self.videos < 0:
            raise ValueError(f"vqa.videos must be 0 or more, got {self.videos}")


class VQAStage:
    """Draws training questions, each with a start of its frames.

    Args:
        data: a CLEVRER data set with training and validation questions.
        slots: of the videos of both.
        config: architecture.
        vqa: how to validate.
        seed: of the initial weights, and of dropout.
        recipe: kept with the weights as the record of the training.
        init: folder of a trained ALOE of the same architecture to train on, None for random weights.

    Raises:
        FileNotFoundError: nothing to start from there.
        ValueError: questions, slots and what to start from do not fit.
    """

    def __init__(
        self,
        data: Dataset,
        slots: VideoSlots,
        config: ALOEConfig,
        vqa: VQATrainingConfig,
        seed: int,
        recipe: Mapping[str, Any],
        init: Path | None = None,
    ) -> None:
        intervened = Intervened(vqa.intervened, data, slots) if vqa.intervened else None
        self.train = SlotQuestions(data.questions("train"), slots, config.frames, intervened)
        held_out = data.questions("validation")
        every = max(1, len(held_out.scenes) // vqa.videos) if vqa.videos else 1
        chosen = held_out.scenes[::every][: vqa.videos or None]
        self.held_out = SlotQuestions(replace(held_out, scenes=chosen), slots, config.frames, intervened)
        self.shuffle = vqa.shuffle
        self.recipe = {**recipe, "intervened": intervened.identity if intervened else None}
        torch.manual_seed(seed)
        self.model = ALOE(config, *slots.array.shape[2:])
        if init:
            before = ALOE.load(init)
            found, expected = ((m.config, m.n_slots, m.slot_dim) for m in (before, self.model))
            if found != expected:
                raise ValueError(f"init is {found}, asked for is {expected}; set the same aloe=, or other slots")
            self.model.load_state_dict(before.state_dict())
            self.recipe["init"] = read_json(init / CONFIG)["training"]

    @property
    def hidden_matrices(self) -> list[nn.Parameter]:
        """Weight matrices of the transformer."""
        return [p for p in self.model.transformer.parameters() if p.ndim == 2]

    def loss(
        self, model: nn.Module, step: int, batch: int, rows: slice, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """See ``losses``."""
        chosen = torch.randint(len(self.train), (batch,), generator=generator)[rows]
        starts = torch.randint(self.train.starts, (batch,), generator=generator)[rows]
        asked = self.train.batch(chosen.numpy(), starts.numpy())
        if self.shuffle:
            order = torch.rand(batch, self.model.n_slots, generator=generator)[rows].argsort(1)
            asked = asked._replace(slots=asked.slots.take_along_dim(order[:, None, :, None], 2))
        asked = asked.to(next(model.parameters()).device)
        return losses(model(asked.slots, asked.words, asked.owner, asked.descriptive), asked)

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Shares of the validation questions answered right: of each type, and of all."""
        right = self.held_out.right(predict(_aloe(model), self.held_out))
        shares = {
            type: float(right[self.held_out.type == number].mean())
            for number, type in enumerate(TYPES)
            if (self.held_out.type == number).any()
        }
        return {**shares, "all": float(right.mean())}

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the model as the folder ``checkpoint``."""
        _aloe(model).save(folder / "checkpoint", self.recipe)


def _aloe(model: nn.Module) -> ALOE:
    if not isinstance(model, ALOE):
        raise TypeError(f"expected the ALOE that was trained, got {type(model).__name__}")
    return model
