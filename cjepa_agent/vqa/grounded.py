"""ALOE with grounding: what a video shows is perceived before words are read, and words are told what they name.

Four things differ from ALOE, none of which is published for it. A transformer over slots and time perceives names,
motion and collisions, as annotations tell them in training (``cjepa_agent.vqa.grounding``); the tokens of a slot and of
a pair of slots hold what was perceived of them over the video. These do not attend to words (the fully visible prefix
of arXiv 1910.10683), so that a video is read once for all of its questions. Words learn which slots they name, as in
MDETR (arXiv 2104.12763). And a third read-out learns whether what a choice says is so, also where the question asks
what is *not* so: right and wrong are the exclusive or of both, of which neither tells anything on its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cjepa_agent.predictor import Block
from cjepa_agent.vqa.aloe import TEXT
from cjepa_agent.vqa.answerer import Answerer, AnswererConfig, Logits, Perceived
from cjepa_agent.vqa.grounding import CONCEPTS
from envs.clevrer.questions.vocabulary import QUESTION_VOCABULARY, QUESTION_WORDS

PAIR_WIDTH = 32


@dataclass(frozen=True)
class GroundedALOEConfig(AnswererConfig):
    """Architecture of ALOE with grounding.

    Attributes:
        perception: layers over slots and time, before any word is read.
        kind: ``grounded``.
    """

    dropout: float = 0.0
    tubelet: int = 4
    perception: int = 2
    kind: Literal["grounded"] = "grounded"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.perception < 1 or self.layers < 2:
            raise ValueError(
                f"aloe.perception must be 1 or more and aloe.layers 2 or more, got {self.perception} and {self.layers}"
            )

    def build(self, slots: int, slot_dim: int) -> GroundedALOE:
        """The model with random weights."""
        return GroundedALOE(self, slots, slot_dim)


class Perception(nn.Module):
    """Tokens of slots in time, and what they show."""

    def __init__(self, config: GroundedALOEConfig, slots: int, slot_dim: int) -> None:
        super().__init__()
        self.slot_in = nn.Linear(config.tubelet * slot_dim, config.width)
        self.time, self.slot = _embedding(config.steps, 1, config.width), _embedding(slots, config.width)
        self.blocks = _blocks(config, config.perception)
        self.norm = nn.LayerNorm(config.width)
        self.concepts = nn.Linear(config.width, len(CONCEPTS))
        self.pairs = nn.Linear(config.width, 2 * PAIR_WIDTH)
        self.rarity = nn.Parameter(torch.tensor(-3.0))

    def forward(self, tubelets: Tensor) -> Perceived:
        """What tubelets (V, C, S, D') show."""
        x = self.slot_in(tubelets) + self.time + self.slot
        shape, x = x.shape[1:3], x.flatten(1, 2)
        for block in self.blocks:
            x = block(x, x.shape[1])
        tokens = self.norm(x).unflatten(1, shape)
        one, other = self.pairs(tokens).chunk(2, dim=-1)
        scores = one @ other.transpose(-1, -2) * PAIR_WIDTH**-0.5
        return Perceived(tokens, self.concepts(tokens), scores + scores.transpose(-1, -2) + self.rarity)


class GroundedALOE(Answerer):
    """A transformer over slots and pairs of slots, as they were perceived, words and [CLS]; see ``Answerer``."""

    # Choices are noise until perception works, and by then most of the read-out's ReLUs were dead.
    activation = nn.GELU

    def __init__(self, config: GroundedALOEConfig, slots: int, slot_dim: int) -> None:
        super().__init__(config, slots, slot_dim)
        width = config.width
        self.perception = Perception(config, slots, slot_dim)
        self.summary = nn.Linear(config.steps * (width + 2 * len(CONCEPTS)), width)
        self.slot = _embedding(slots, width)
        self.pair = nn.Linear(width + config.steps, width)
        self.first, self.second = torch.triu_indices(slots, slots, offset=1).tolist()
        self.words = nn.Embedding(len(QUESTION_VOCABULARY), width)
        nn.init.normal_(self.words.weight, std=0.5)
        self.parts, self.positions, self.cls = _embedding(2, width), _embedding(TEXT, width), _embedding(1, width)
        self.blocks = _blocks(config, config.layers)
        self.norm = nn.LayerNorm(width)
        self.holds_head = self._head(1)
        self.naming, self.named = nn.Linear(width, PAIR_WIDTH), nn.Linear(width, PAIR_WIDTH)

    @property
    def hidden_matrices(self) -> list[nn.Parameter]:
        """See ``Answerer``."""
        return [p for blocks in (self.perception.blocks, self.blocks) for p in blocks.parameters() if p.ndim == 2]

    def forward(self, slots: Tensor, words: Tensor, owner: Tensor, descriptive: Tensor) -> Logits:
        """See ``Answerer``."""
        perceived, mentioned, tokens, seen = self._before_last(slots, words, owner, descriptive)
        summary = self.norm(self._last(tokens, 1, seen)[:, 0])
        correct, holds = self.choice_head(summary).squeeze(-1), self.holds_head(summary).squeeze(-1)
        return Logits(self.answer_head(summary), correct, mentioned, perceived, holds)

    @torch.no_grad()
    def attention(self, slots: Tensor, words: Tensor, owner: Tensor, descriptive: Tensor) -> Tensor:
        """See ``Answerer``; there is one token of each slot, C is 1."""
        _, _, tokens, seen = self._before_last(slots, words, owner, descriptive)
        return self._last.attention(tokens, seen).mean(1)[:, -1:, : self.n_slots]

    @property
    def _last(self) -> Block:
        return cast(Block, self.blocks[-1])

    def _before_last(
        self, slots: Tensor, words: Tensor, owner: Tensor, descriptive: Tensor
    ) -> tuple[Perceived, Tensor, Tensor, Tensor]:
        """What is perceived and mentioned, and the last block's tokens (I, M, width) and which are no padding.

        They are those of slots, of pairs of slots, of the L words of the longest text, and [CLS].
        """
        perceived = self.perception(self.tubelets(slots))
        text = self._text(words, descriptive)
        objects = self._objects(perceived)
        seen = F.pad(words[:, : text.shape[1] - 1] != 0, (objects.shape[1], 1), value=True)
        half = (len(self.blocks) + 1) // 2
        objects, text = self._read(self.blocks[:half], objects, owner, text, seen)
        named = self.named(objects[:, : self.n_slots])[owner]
        mentioned = self.naming(text[:, :-1]) @ named.transpose(1, 2) * PAIR_WIDTH**-0.5
        objects, text = self._read(self.blocks[half:-1], objects, owner, text, seen)
        return perceived, mentioned, torch.cat([objects[owner], text], dim=1), seen

    def _read(
        self, blocks: Iterable[nn.Module], objects: Tensor, owner: Tensor, text: Tensor, seen: Tensor
    ) -> tuple[Tensor, Tensor]:
        for block in blocks:
            text = block(torch.cat([objects[owner], text], dim=1), text.shape[1], seen)
            objects = block(objects, objects.shape[1])
        return objects, text

    def _objects(self, perceived: Perceived) -> Tensor:
        """Tokens (V, S + S (S - 1) / 2, width) of slots and of pairs of them.

        A slot's holds what was perceived of it, and of those that it collided with; a pair's what its two slots' hold,
        and when they collided: a text that names both finds in one place whether they did.
        """
        concepts = perceived.concepts.sigmoid()
        itself = torch.eye(self.n_slots, dtype=torch.bool, device=concepts.device)
        partners = perceived.collisions.sigmoid().masked_fill(itself, 0) @ concepts
        # What is perceived is learned from annotations alone, and answers are learned from it as it is.
        known = torch.cat([perceived.tokens, concepts, partners], dim=-1).detach()
        tokens = self.summary(known.transpose(1, 2).flatten(2)) + self.slot
        collided = perceived.collisions.sigmoid()[:, :, self.first, self.second].detach().transpose(1, 2)
        pairs = self.pair(torch.cat([tokens[:, self.first] + tokens[:, self.second], collided], dim=-1))
        return torch.cat([tokens, pairs], dim=1)

    def _text(self, words: Tensor, descriptive: Tensor) -> Tensor:
        """Tokens (I, L + 1, width) of words up to the last of the longest text, and [CLS]."""
        length = int((words != 0).any(0).nonzero().max()) + 1
        in_question = ~descriptive[:, None] & (torch.arange(length, device=words.device) < QUESTION_WORDS)
        text = self.words(words[:, :length]) + self.parts[in_question.long()] + self.positions[:length]
        return torch.cat([text, self.cls.expand(len(words), -1, -1)], dim=1)


def _blocks(config: GroundedALOEConfig, count: int) -> nn.ModuleList:
    sizes = config.width, config.heads, config.mlp, config.dropout
    return nn.ModuleList(Block(*sizes) for _ in range(count))


def _embedding(*shape: int) -> nn.Parameter:
    return nn.Parameter(0.02 * torch.randn(shape))
