"""What all models that answer CLEVRER's questions share: sizes, interface and losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from cjepa_agent.vqa.data import Batch, SlotQuestions
from envs.clevrer.questions.vocabulary import ANSWER_VOCABULARY


@dataclass(frozen=True)
class AnswererConfig:
    """Sizes of a model that answers questions.

    Attributes:
        layers: of the transformer over slots and words.
        heads: of its attention.
        width: of its tokens.
        mlp: width of its feed-forward layers.
        head: hidden width of the two read-outs.
        dropout: rate.
        frames: of a video that are read, 1 to 128.
        tubelet: successive frames that share a token: a token is a slot over as many of them, as a linear map of all
            (the tubelets of arXiv 2103.15691), which shows motion and makes sequences short.
        blind: read no slots but zeros: what the questions alone tell.
    """

    layers: int = 4
    heads: int = 4
    width: int = 96
    mlp: int = 256
    head: int = 128
    dropout: float = 0.1
    frames: int = 60
    tubelet: int = 60
    blind: bool = False

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "width", "mlp", "head", "frames", "tubelet"):
            if getattr(self, name) < 1:
                raise ValueError(f"aloe.{name} must be positive, got {getattr(self, name)}")
        if self.frames % self.tubelet:
            raise ValueError(f"aloe.frames {self.frames} is not a multiple of aloe.tubelet {self.tubelet}")
        if self.width % self.heads:
            raise ValueError(f"aloe.width {self.width} is not a multiple of {self.heads} heads")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"aloe.dropout must be in [0, 1), got {self.dropout}")

    @property
    def steps(self) -> int:
        """C, tubelets of a slot."""
        return self.frames // self.tubelet


class Perceived(NamedTuple):
    """What V readings show, as logits.

    Attributes:
        tokens: (V, C, S, width) of slots, that the concepts are read from.
        pairs: (V, C, S (S - 1) / 2, width) of pairs of slots, that the collisions are read from.
        concepts: (V, C, S, 15) of each slot in each tubelet, see ``cjepa_agent.vqa.grounding``.
        collisions: (V, C, S, S) that the objects of two slots collide, symmetric; the diagonal means nothing.
    """

    tokens: Tensor
    pairs: Tensor
    concepts: Tensor
    collisions: Tensor


class Asked(NamedTuple):
    """What D descriptive questions ask about, as logits.

    Attributes:
        moment: (D, C) of the tubelet in which what the question speaks of happens.
        referents: (D, N) whether the answer is of a slot or of a pair, by ``cjepa_agent.vqa.causal_past.nodes``.
    """

    moment: Tensor
    referents: Tensor


class Logits(NamedTuple):
    """Of I items.

    Attributes:
        answer: (I, 22) over answers, meant for descriptive questions.
        correct: (I,) that a choice is correct.
        mentioned: (I, 32, S) that a word names the object of a slot; None from models that are not asked.
        perceived: of the readings; None likewise.
        holds: (I,) that what a choice says is so, also where the question asks for what is not; None likewise.
        asked: about what; None likewise.
    """

    answer: Tensor
    correct: Tensor
    mentioned: Tensor | None = None
    perceived: Perceived | None = None
    holds: Tensor | None = None
    asked: Asked | None = None


class Answerer(nn.Module, ABC):
    """Answers questions from slots.

    Args:
        config: sizes; weights start random.
        slots: S.
        slot_dim: D.

    Attributes:
        activation: of the hidden layer of both read-outs, ReLU as published.
    """

    activation: ClassVar[type[nn.Module]] = nn.ReLU

    def __init__(self, config: AnswererConfig, slots: int, slot_dim: int) -> None:
        super().__init__()
        self.config, self.n_slots, self.slot_dim = config, slots, slot_dim
        self.answer_head = self._head(self.answer_width, len(ANSWER_VOCABULARY))
        self.choice_head = self._head(self.choice_width, 1)

    @property
    @abstractmethod
    def hidden_matrices(self) -> list[nn.Parameter]:
        """Weight matrices of transformer blocks."""

    @abstractmethod
    def forward(self, slots: Tensor, words: Tensor, owner: Tensor, descriptive: Tensor) -> Logits:
        """Both read-outs of all items; for shapes see ``Batch``.

        Raises:
            ValueError: slots of another shape than the model's.
        """

    @abstractmethod
    def attention(self, slots: Tensor, words: Tensor, owner: Tensor, descriptive: Tensor) -> Tensor:
        """What [CLS] attends to in the last layer, mean over heads: weights (I, C, S) of tokens of slots in time.

        They sum to 1 together with those of all other tokens: [CLS] itself, words and, in models that perceive, pairs.
        """

    def visible(self, slots: Tensor) -> Tensor:
        """Slots (V, F, S, D) as the model sees them, zeros for blind models; raises as ``forward``."""
        expected = (self.config.frames, self.n_slots, self.slot_dim)
        if tuple(slots.shape[1:]) != expected:
            raise ValueError(f"slots are {tuple(slots.shape[1:])}, the model reads (frames, slots, width) {expected}")
        return torch.zeros_like(slots) if self.config.blind else slots

    def tubelets(self, slots: Tensor) -> Tensor:
        """Visible slots (V, F, S, D) as (V, C, S, frames of a tubelet x D)."""
        tubelets: Tensor = slots.unflatten(1, (self.config.steps, self.config.tubelet)).transpose(2, 3).flatten(3)
        return tubelets

    @property
    def answer_width(self) -> int:
        """Numbers that answers are read from."""
        return self.config.width

    @property
    def choice_width(self) -> int:
        """Numbers that choices are read from."""
        return self.config.width

    def _head(self, inputs: int, outputs: int) -> nn.Sequential:
        hidden = self.config.head
        return nn.Sequential(nn.Linear(inputs, hidden), self.activation(), nn.Linear(hidden, outputs))


def losses(logits: Logits, batch: Batch) -> dict[str, Tensor]:
    """Cross-entropy of answers, mean over descriptive questions, binary one of choices, mean over those, and the sum.

    A term is zero where the batch has no such question.
    """
    descriptive, choice = batch.descriptive, ~batch.descriptive
    answer = F.cross_entropy(logits.answer[descriptive], batch.target[descriptive], reduction="sum")
    correct = F.binary_cross_entropy_with_logits(
        logits.correct[choice], batch.target[choice].to(logits.correct.dtype), reduction="sum"
    )
    terms = {"answer": answer / descriptive.sum().clamp(min=1), "choice": correct / choice.sum().clamp(min=1)}
    return {"total": terms["answer"] + terms["choice"], **terms}


@torch.no_grad()
def predict(model: Answerer, questions: SlotQuestions, batch: int = 64, starts: int = 1) -> NDArray[np.int64]:
    """Answers (I,) to all items, numbered as ``SlotQuestions.target``.

    Args:
        model: in evaluation mode.
        questions: what is asked.
        batch: questions per forward pass.
        starts: see ``SlotQuestions.spread``; of several, log-probabilities of answers and logits of choices are added.

    Raises:
        ValueError: frames cannot be read from as many starts.
    """
    device = next(model.parameters()).device
    answers, spread = [], questions.spread(starts)
    parts = np.array_split(np.arange(len(questions)), -(-len(questions) // batch))
    for chosen in tqdm(parts, unit="batch", mininterval=2.0, leave=False):
        answer, correct = torch.zeros(()), torch.zeros(())
        for start in spread:
            readings = questions.readings(chosen, np.full(len(chosen), start))
            asked = questions.batch(chosen, readings).to(device)
            logits = model(asked.slots, asked.words, asked.owner, asked.descriptive)
            answer, correct = answer + logits.answer.log_softmax(1), correct + logits.correct
        likeliest = answer[:, 1:].argmax(1) + 1  # the first answer is padding
        answers.append(torch.where(asked.descriptive, likeliest, (correct > 0).long()).cpu().numpy())
    return np.concatenate(answers)
