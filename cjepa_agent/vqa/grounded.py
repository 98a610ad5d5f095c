"""ALOE with grounding: what a video shows is perceived before words are read, and words are told what they name.

Five things differ from ALOE, none of which is published for it. A transformer over slots and time perceives names,
motion and collisions, as annotations tell them in training (``cjepa_agent.vqa.grounding``); the tokens of a slot and of
a pair of slots hold what was perceived of them over the video, and tell what led to what. These do not attend to words
(the fully visible prefix of arXiv 1910.10683), so that a video is read once for all of its questions. Words learn which
slots they name, as in MDETR (arXiv 2104.12763). Choices are read from the tokens of what question and choice name,
beside [CLS]. And a third read-out learns whether what a choice says is so, also where the question asks what is *not*
so: right and wrong are the exclusive or of both, of which neither tells anything on its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cjepa_agent.predictor import Block
from cjepa_agent.vqa.aloe import TEXT
from cjepa_agent.vqa.answerer import Answerer, AnswererConfig, Logits, Perceived
from cjepa_agent.vqa.grounding import CONCEPTS, NAME_OF_WORD, NO_NAME, nodes
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
    is_name: Tensor

    def __init__(self, config: GroundedALOEConfig, slots: int, slot_dim: int) -> None:
        super().__init__(config, slots, slot_dim)
        width = config.width
        self.perception = Perception(config, slots, slot_dim)
        self.course = nn.Linear(config.tubelet * slot_dim, PAIR_WIDTH)
        self.summary = nn.Linear(config.steps * (width + 2 * len(CONCEPTS) + PAIR_WIDTH), width)
        self.slot = _embedding(slots, width)
        self.pair = nn.Linear(2 * width + config.steps, width)
        self.first, self.second = (list(ends[slots:]) for ends in nodes(slots))
        self.words = nn.Embedding(len(QUESTION_VOCABULARY), width)
        nn.init.normal_(self.words.weight, std=0.5)
        self.parts, self.positions, self.cls = _embedding(2, width), _embedding(TEXT, width), _embedding(1, width)
        self.blocks = _blocks(config, config.layers)
        self.norm = nn.LayerNorm(width)
        self.holds_head = self._head(self.choice_width, 1)
        self.naming, self.named = nn.Linear(width, PAIR_WIDTH), nn.Linear(width, PAIR_WIDTH)
        self.effect, self.cause = nn.Linear(width, width), nn.Linear(width, width)
        self.rarity = nn.Parameter(torch.tensor(-3.0))
        self.register_buffer("is_name", NAME_OF_WORD != NO_NAME, persistent=False)

    @property
    def choice_width(self) -> int:
        """See ``Answerer``."""
        return 5 * self.config.width + 16

    @property
    def hidden_matrices(self) -> list[nn.Parameter]:
        """See ``Answerer``."""
        return [p for blocks in (self.perception.blocks, self.blocks) for p in blocks.parameters() if p.ndim == 2]

    def forward(self, slots: Tensor, words: Tensor, owner: Tensor, descriptive: Tensor) -> Logits:
        """See ``Answerer``."""
        perceived, mentioned, objects, text, seen = self._before_last(slots, words, owner, descriptive)
        summary = self.norm(self._last(text, 1, seen, self._last.keys_values(objects)[owner])[:, 0])
        objects = self.norm(objects)
        causes = self.effect(objects) @ self.cause(objects).transpose(1, 2) * self.config.width**-0.5 + self.rarity
        told = torch.cat([summary, self._of_named(objects, causes, owner, words, mentioned)], dim=-1)
        correct, holds = self.choice_head(told).squeeze(-1), self.holds_head(told).squeeze(-1)
        return Logits(self.answer_head(summary), correct, mentioned, perceived, holds, causes)

    @torch.no_grad()
    def attention(self, slots: Tensor, words: Tensor, owner: Tensor, descriptive: Tensor) -> Tensor:
        """See ``Answerer``; there is one token of each slot, C is 1."""
        _, _, objects, text, seen = self._before_last(slots, words, owner, descriptive)
        tokens = torch.cat([objects[owner], text], dim=1)
        return self._last.attention(tokens, seen).mean(1)[:, -1:, : self.n_slots]

    @property
    def _last(self) -> Block:
        return cast(Block, self.blocks[-1])

    def _before_last(
        self, slots: Tensor, words: Tensor, owner: Tensor, descriptive: Tensor
    ) -> tuple[Perceived, Tensor, Tensor, Tensor, Tensor]:
        """What is perceived and mentioned, tokens before the last block, and which of them are no padding.

        They are (V, N, width) of slots and of pairs of slots, and (I, L + 1, width) of words and [CLS], see ``_text``.
        """
        tubelets = self.tubelets(slots)
        perceived = self.perception(tubelets)
        text, is_text, places = self._text(words, descriptive)
        objects = self._objects(tubelets, perceived)
        seen = F.pad(is_text, (objects.shape[1], 0), value=True)
        blocks = cast(Sequence[Block], self.blocks)
        half = (len(blocks) + 1) // 2
        objects, text = self._read(blocks[:half], objects, owner, text, seen)
        named = self.named(objects[:, : self.n_slots])[owner]
        naming = self.naming(text[:, :-1]) @ named.transpose(1, 2) * PAIR_WIDTH**-0.5
        mentioned = naming.new_zeros(*words.shape, self.n_slots)
        mentioned = mentioned.scatter(1, places[..., None].expand_as(naming), naming)
        objects, text = self._read(blocks[half:-1], objects, owner, text, seen)
        return perceived, mentioned, objects, text, seen

    def _of_named(self, objects: Tensor, causes: Tensor, owner: Tensor, words: Tensor, mentioned: Tensor) -> Tensor:
        """What is known (I, 4 width + 16) of the slots and the pairs of slots that question and choice name.

        Args:
            objects: (V, N, width) tokens of slots and pairs.
            causes: (V, N, N) logits of what leads to what.
            owner: see ``Batch``.
            words: see ``Batch``.
            mentioned: (I, 32, S) logits of which words name what.
        """
        in_choice = torch.arange(words.shape[1], device=words.device) >= QUESTION_WORDS
        # Which words name what is learned from annotations alone, like all that is perceived.
        said = mentioned.sigmoid().detach() * self.is_name[words][..., None]
        slots = torch.stack([1 - (1 - said[:, part]).prod(1) for part in (~in_choice, in_choice)], dim=1)
        pairs = slots[..., self.first] * slots[..., self.second]
        named = torch.cat([F.pad(slots, (0, pairs.shape[-1])), F.pad(pairs, (slots.shape[-1], 0))], dim=1)
        leads = named @ causes.sigmoid()[owner] @ named.transpose(1, 2)
        return torch.cat([(named @ objects[owner]).flatten(1), leads.flatten(1)], dim=-1)

    def _read(
        self, blocks: Sequence[Block], objects: Tensor, owner: Tensor, text: Tensor, seen: Tensor
    ) -> tuple[Tensor, Tensor]:
        for block in blocks:
            text = block(text, text.shape[1], seen, block.keys_values(objects)[owner])
            objects = block(objects, objects.shape[1])
        return objects, text

    def _objects(self, tubelets: Tensor, perceived: Perceived) -> Tensor:
        """Tokens (V, S + S (S - 1) / 2, width) of slots and of pairs of them.

        A slot's holds its course, what was perceived of it, and of those that it collided with; a pair's what its two
        slots' hold and how these differ, and when they collided: a text that names both finds in one place whether they
        did, or come near each other.
        """
        concepts = perceived.concepts.sigmoid()
        itself = torch.eye(self.n_slots, dtype=torch.bool, device=concepts.device)
        partners = perceived.collisions.sigmoid().masked_fill(itself, 0) @ concepts
        # What is perceived is learned from annotations alone, and answers are learned from it as it is.
        known = torch.cat([perceived.tokens, concepts, partners], dim=-1).detach()
        known = torch.cat([known, self.course(tubelets)], dim=-1)
        tokens = self.summary(known.transpose(1, 2).flatten(2)) + self.slot
        collided = perceived.collisions.sigmoid()[:, :, self.first, self.second].detach().transpose(1, 2)
        one, other = tokens[:, self.first], tokens[:, self.second]
        pairs = self.pair(torch.cat([one + other, (one - other).abs(), collided], dim=-1))
        return torch.cat([tokens, pairs], dim=1)

    def _text(self, words: Tensor, descriptive: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (I, L + 1, width) of words and [CLS], which of them are no padding, and the words' places (I, L).

        L is the most words of an item; those of question and choice follow each other without the padding in between,
        which would be half of all tokens.
        """
        length = int((words != 0).sum(1).max())
        places = (words == 0).int().argsort(dim=1, stable=True)[:, :length]
        words = words.gather(1, places)
        in_question = ~descriptive[:, None] & (places < QUESTION_WORDS)
        text = self.words(words) + self.parts[in_question.long()] + self.positions[places]
        text = torch.cat([text, self.cls.expand(len(words), -1, -1)], dim=1)
        return text, F.pad(words != 0, (0, 1), value=True), places


def _blocks(config: GroundedALOEConfig, count: int) -> nn.ModuleList:
    sizes = config.width, config.heads, config.mlp, config.dropout
    return nn.ModuleList(Block(*sizes) for _ in range(count))


def _embedding(*shape: int) -> nn.Parameter:
    return nn.Parameter(0.02 * torch.randn(shape))
