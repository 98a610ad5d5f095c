"""ALOE: a transformer over slots and words that answers CLEVRER's questions.

Ding et al., "Attention over learned object embeddings enables complex visual reasoning" (arXiv 2012.08508), as
SlotFormer (arXiv 2210.05861) and C-JEPA use it: without the loss on hidden objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import dacite
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from cjepa_agent.files import read_json, write_json
from cjepa_agent.provenance import git_commit, package_version
from cjepa_agent.tensors import load_tensors, save_tensors
from cjepa_agent.vqa.data import Batch, SlotQuestions
from envs.clevrer.questions.vocabulary import ANSWER_VOCABULARY, CHOICE_WORDS, QUESTION_VOCABULARY, QUESTION_WORDS

CONFIG, WEIGHTS = "config.json", "model.safetensors"
MODEL_TYPE = "cjepa_agent.aloe"
WORD_WIDTH = 14
TEXT = QUESTION_WORDS + CHOICE_WORDS


@dataclass(frozen=True)
class ALOEConfig:
    """Architecture of the model that answers questions; ``aloe=paper`` has the published sizes.

    Attributes:
        layers: of the transformer.
        heads: of its attention.
        width: of its tokens.
        mlp: width of its feed-forward layers.
        head: hidden width of the two read-outs.
        dropout: rate.
        frames: of a video that are read, 1 to 128.
        tubelet: successive frames that share a token: a token is a slot over as many of them, as a linear map of all
            (the tubelets of arXiv 2103.15691), which shows motion and makes sequences short. 1 as published.
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
        """C, tokens in time of a slot."""
        return self.frames // self.tubelet


class Logits(NamedTuple):
    """Of I items.

    Attributes:
        answer: (I, 22) over answers, meant for descriptive questions.
        correct: (I,) that a choice is correct.
    """

    answer: Tensor
    correct: Tensor


class ALOE(nn.Module):
    """A transformer over [CLS], the slots of F frames, a token per slot and tubelet, and 32 words.

    Args:
        config: sizes; weights start random.
        slots: S.
        slot_dim: D.
    """

    def __init__(self, config: ALOEConfig, slots: int, slot_dim: int) -> None:
        super().__init__()
        self.config, self.n_slots, self.slot_dim = config, slots, slot_dim
        self.words = nn.Embedding(len(QUESTION_VOCABULARY), WORD_WIDTH)
        # Two numbers more tell the part of a text, and two whether a token is text or slot.
        self.text_in = nn.Linear(WORD_WIDTH + 4, config.width)
        self.slot_in = nn.Linear(config.tubelet * slot_dim + 2, config.width)
        self.cls = nn.Parameter(torch.zeros(1, 1, config.width))
        self.positions = nn.Parameter(torch.zeros(1, 1 + config.steps * slots + TEXT, config.width))
        layer = nn.TransformerEncoderLayer(
            config.width, config.heads, config.mlp, config.dropout, batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.answer_head = _head(config, len(ANSWER_VOCABULARY))
        self.choice_head = _head(config, 1)

    def forward(self, slots: Tensor, words: Tensor, owner: Tensor, descriptive: Tensor) -> Logits:
        """Both read-outs of all items; for shapes see ``Batch``.

        Raises:
            ValueError: slots of another shape than the model's.
        """
        tokens, padding = self._tokens(slots, words, owner, descriptive)
        summary = self.transformer(tokens, src_key_padding_mask=padding)[:, 0]
        return Logits(self.answer_head(summary), self.choice_head(summary).squeeze(-1))

    @torch.no_grad()
    def attention(self, slots: Tensor, words: Tensor, owner: Tensor, descriptive: Tensor) -> Tensor:
        """What [CLS] attends to in the last layer, mean over heads: weights (I, C, S) of each slot in each tubelet.

        They sum to 1 together with those of [CLS] itself and of the words.
        """
        tokens, padding = self._tokens(slots, words, owner, descriptive)
        *before, last = self.transformer.layers
        for layer in before:
            tokens = layer(tokens, src_key_padding_mask=padding)
        normal = last.norm1(tokens)
        _, weights = last.self_attn(normal[:, :1], normal, normal, key_padding_mask=padding)
        steps = self.config.steps
        seen: Tensor = weights[:, 0, 1 : 1 + steps * self.n_slots].unflatten(1, (steps, self.n_slots))
        return seen

    def _tokens(self, slots: Tensor, words: Tensor, owner: Tensor, descriptive: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (I, 1 + C S + 32, width), and which of them are padding."""
        expected = (self.config.frames, self.n_slots, self.slot_dim)
        if tuple(slots.shape[1:]) != expected:
            raise ValueError(f"slots are {tuple(slots.shape[1:])}, the model reads (frames, slots, width) {expected}")
        if self.config.blind:
            slots = torch.zeros_like(slots)
        tubelets = slots.unflatten(1, (self.config.steps, self.config.tubelet)).transpose(2, 3).flatten(3)
        # Choices of one question share its video, whose slots are mapped once.
        seen = self.slot_in(_marked(tubelets, 0, 1)).flatten(1, 2)[owner]
        in_question = ~descriptive[:, None] & (torch.arange(TEXT, device=words.device) < QUESTION_WORDS)
        parts = torch.stack([in_question, ~in_question], dim=-1).to(slots.dtype)
        text = self.text_in(_marked(torch.cat([self.words(words), parts], dim=-1), 1, 0))
        tokens = torch.cat([self.cls.expand(len(words), -1, -1), seen, text], dim=1) + self.positions
        return tokens, F.pad(words == 0, (tokens.shape[1] - TEXT, 0), value=False)

    def save(self, folder: Path, training: Mapping[str, Any]) -> None:
        """Write ``config.json`` and ``model.safetensors``.

        Args:
            folder: made if absent.
            training: kept as the record of the training, anything that JSON can hold.
        """
        save_tensors(folder / WEIGHTS, self.state_dict())
        config = {
            "model_type": MODEL_TYPE,
            "version": package_version(),
            "git_commit": git_commit(),
            "model": asdict(self.config),
            "slots": self.n_slots,
            "slot_dim": self.slot_dim,
            "training": dict(training),
        }
        write_json(folder / CONFIG, config)

    @classmethod
    def load(cls, folder: Path) -> ALOE:
        """Read what ``save`` wrote, strictly, in evaluation mode.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is truncated, belongs to another kind of model, or the two do not fit.
        """
        path = folder / CONFIG
        config = read_json(path)
        found = config.get("model_type") if isinstance(config, dict) else None
        if found != MODEL_TYPE:
            raise ValueError(
                f"{path} belongs to another kind of model: model_type is {found!r}, expected {MODEL_TYPE!r}"
            )
        try:
            sizes = dacite.from_dict(ALOEConfig, config["model"], dacite.Config(strict=True, cast=[float]))
            model = cls(sizes, int(config["slots"]), int(config["slot_dim"])).eval()
        except (dacite.DaciteError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise ValueError(f"{path} is not a configuration of ALOE: {error!r}") from error
        model.load_state_dict(load_tensors(folder / WEIGHTS, model.state_dict()), strict=True)
        return model


def _marked(values: Tensor, *marks: int) -> Tensor:
    """Values (..., N) with constant numbers appended."""
    return torch.cat([values, values.new_tensor(marks).expand(*values.shape[:-1], len(marks))], dim=-1)


def _head(config: ALOEConfig, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(config.width, config.head), nn.ReLU(), nn.Linear(config.head, outputs))


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
def predict(model: ALOE, questions: SlotQuestions, batch: int = 64) -> NDArray[np.int64]:
    """Answers (I,) to all items, numbered as ``SlotQuestions.target``; frames are read from the fixed start.

    Args:
        model: in evaluation mode.
        questions: what is asked.
        batch: questions per forward pass.
    """
    device = next(model.parameters()).device
    answers = []
    for chosen in np.array_split(np.arange(len(questions)), -(-len(questions) // batch)):
        asked = questions.batch(chosen).to(device)
        logits = model(asked.slots, asked.words, asked.owner, asked.descriptive)
        likeliest = logits.answer[:, 1:].argmax(1) + 1  # the first answer is padding
        answers.append(torch.where(asked.descriptive, likeliest, (logits.correct > 0).long()).cpu().numpy())
    return np.concatenate(answers)
