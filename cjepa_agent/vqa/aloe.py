"""ALOE: a transformer over slots and words that answers CLEVRER's questions.

Ding et al., "Attention over learned object embeddings enables complex visual reasoning" (arXiv 2012.08508), as
SlotFormer (arXiv 2210.05861) and C-JEPA use it: without the loss on hidden objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cjepa_agent.vqa.answerer import Answerer, AnswererConfig, Logits
from envs.clevrer.questions.vocabulary import CHOICE_WORDS, QUESTION_VOCABULARY, QUESTION_WORDS

WORD_WIDTH = 14
TEXT = QUESTION_WORDS + CHOICE_WORDS


@dataclass(frozen=True)
class ALOEConfig(AnswererConfig):
    """Architecture of ALOE; ``aloe=paper`` has the published sizes, 1 frame in a tubelet.

    Attributes:
        kind: ``aloe``.
    """

    kind: Literal["aloe"] = "aloe"

    def build(self, slots: int, slot_dim: int) -> ALOE:
        """The model with random weights."""
        return ALOE(self, slots, slot_dim)


class ALOE(Answerer):
    """A transformer over [CLS], the slots of F frames, a token per slot and tubelet, and 32 words; see ``Answerer``."""

    def __init__(self, config: ALOEConfig, slots: int, slot_dim: int) -> None:
        super().__init__(config, slots, slot_dim)
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

    @property
    def hidden_matrices(self) -> list[nn.Parameter]:
        """See ``Answerer``."""
        return [p for p in self.transformer.parameters() if p.ndim == 2]

    def forward(self, slots: Tensor, words: Tensor, owner: Tensor, descriptive: Tensor) -> Logits:
        """See ``Answerer``."""
        tokens, padding = self._tokens(slots, words, owner, descriptive)
        summary = self.transformer(tokens, src_key_padding_mask=padding)[:, 0]
        return Logits(self.answer_head(summary), self.choice_head(summary).squeeze(-1))

    @torch.no_grad()
    def attention(self, slots: Tensor, words: Tensor, owner: Tensor, descriptive: Tensor) -> Tensor:
        """See ``Answerer``; there is a token of each slot in each tubelet."""
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
        # Questions share readings, whose slots are mapped once.
        seen = self.slot_in(_marked(self.tubelets(self.visible(slots)), 0, 1)).flatten(1, 2)[owner]
        in_question = ~descriptive[:, None] & (torch.arange(TEXT, device=words.device) < QUESTION_WORDS)
        parts = torch.stack([in_question, ~in_question], dim=-1).to(slots.dtype)
        text = self.text_in(_marked(torch.cat([self.words(words), parts], dim=-1), 1, 0))
        tokens = torch.cat([self.cls.expand(len(words), -1, -1), seen, text], dim=1) + self.positions
        return tokens, F.pad(words == 0, (tokens.shape[1] - TEXT, 0), value=False)


def _marked(values: Tensor, *marks: int) -> Tensor:
    """Values (..., N) with constant numbers appended."""
    return torch.cat([values, values.new_tensor(marks).expand(*values.shape[:-1], len(marks))], dim=-1)
