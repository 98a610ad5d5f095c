"""ALOE with grounding: what a video shows is perceived before words are read, and words are told what they name.

Six things differ from ALOE, none of which is published for it. Convolutions over time perceive names, motion and
collisions, as annotations tell them in training (``cjepa_agent.vqa.grounding``), and from collisions follows what led
to what (``cjepa_agent.vqa.causal_past``); the tokens of a slot and of a pair of slots hold what was perceived of them
over the video. These do not attend to words (the fully visible prefix of arXiv 1910.10683), so that a video is read
once for all of its questions. Words learn which slots they name, as in MDETR (arXiv 2104.12763), and hold what these
hold. Descriptive questions learn from their programs what they ask about (``cjepa_agent.vqa.referring``), and their
answers are read from that, beside [CLS]; choices are read from the tokens of what question and choice name, and from
what led to what of these. And a third read-out learns whether what a choice says is so, also where the question asks
what is *not* so: right and wrong are the exclusive or of both, of which neither tells anything on its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cjepa_agent.predictors.cjepa import Block
from cjepa_agent.vqa.aloe import TEXT
from cjepa_agent.vqa.answerer import Answerer, AnswererConfig, Asked, Logits, Perceived
from cjepa_agent.vqa.causal_past import causal_past, pair_ends
from cjepa_agent.vqa.grounding import CONCEPTS, NAME_OF_WORD, NAMES, NO_NAME
from cjepa_agent.vqa.referring import Referring
from envs.clevrer.questions.vocabulary import QUESTION_VOCABULARY, QUESTION_WORDS

COURSE_WIDTH, PHRASE_WIDTH = 32, 64
PHRASE = 3  # words before and after a word that may belong to the same phrase
AROUND = 2  # frames before and after
SURE = 4.0  # logit that matches start from, and collisions, which are rare, from minus as much


@dataclass(frozen=True)
class GroundedALOEConfig(AnswererConfig):
    """Architecture of ALOE with grounding.

    Attributes:
        perception: width of the convolutions over time that perceive slots and pairs of slots.
        kind: ``grounded``.
    """

    dropout: float = 0.0
    tubelet: int = 2
    perception: int = 48
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
    """What each slot shows, and each pair of slots: convolutions over time.

    Distances and motion are told by absolute differences, of two slots and of a slot and itself one frame before: a
    transformer over slots, which must find them by products, took most collisions for two (``docs/LOG.md``).
    """

    first: Tensor
    second: Tensor
    pair_of: Tensor

    def __init__(self, config: GroundedALOEConfig, slots: int, slot_dim: int) -> None:
        super().__init__()
        width = config.perception
        self.code = nn.Linear(slot_dim, width)
        self.own, self.both = nn.Linear(slot_dim + width, width), nn.Linear(3 * width, width)
        self.slot_course, self.pair_course = (Course(width, config.tubelet) for _ in range(2))
        self.concepts, self.collisions = nn.Linear(width, len(CONCEPTS)), nn.Linear(width, 1)
        nn.init.constant_(self.collisions.bias, -SURE)
        first, second = pair_ends(slots)
        pair_of = torch.zeros(slots, slots, dtype=torch.long)
        pair_of[first, second] = pair_of[second, first] = torch.arange(len(first))
        for name, value in (("first", first), ("second", second), ("pair_of", pair_of)):
            self.register_buffer(name, value, persistent=False)

    def forward(self, slots: Tensor) -> Perceived:
        """What slots (V, F, S, D) show."""
        code = self.code(slots)
        change = F.pad(code.diff(dim=1).abs(), (0, 0, 0, 0, 1, 0))
        own = F.gelu(self.own(torch.cat([slots, change], dim=-1)))
        one, other = code[:, :, self.first], code[:, :, self.second]
        motion = own[:, :, self.first] + own[:, :, self.second]
        both = F.gelu(self.both(torch.cat([(one - other).abs(), one * other, motion], dim=-1)))
        tokens, pairs = self.slot_course(own), self.pair_course(both)
        collisions = self.collisions(pairs).squeeze(-1)[..., self.pair_of]
        return Perceived(tokens, pairs, self.concepts(tokens), collisions)


class Course(nn.Module):
    """Frames to tubelets, each with those around it.

    Args:
        width: numbers per frame, and per tubelet.
        tubelet: frames in one.
    """

    def __init__(self, width: int, tubelet: int) -> None:
        super().__init__()
        self.frames = nn.Conv1d(width, width, 2 * AROUND + 1, padding=AROUND)
        self.tubelets = nn.Conv1d(width, width, tubelet + 2 * AROUND, stride=tubelet, padding=AROUND)
        self.norm = nn.LayerNorm(width)

    def forward(self, values: Tensor) -> Tensor:
        """Values (V, F, N, width) to (V, C, N, width)."""
        x = values.permute(0, 2, 3, 1).flatten(0, 1)
        x = F.gelu(self.tubelets(x + F.gelu(self.frames(x))))
        tubelets: Tensor = self.norm(x.unflatten(0, (len(values), -1)).permute(0, 3, 1, 2))
        return tubelets


class Naming(nn.Module):
    """Which slots words name: those that lack nothing of what a word's phrase asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(len(QUESTION_VOCABULARY), PHRASE_WIDTH)
        self.around = nn.Conv1d(PHRASE_WIDTH, PHRASE_WIDTH, 2 * PHRASE + 1, padding=PHRASE)
        self.asked = nn.Linear(PHRASE_WIDTH, len(NAMES))
        self.nothing = nn.Parameter(torch.tensor(SURE))

    def forward(self, words: Tensor, names: Tensor) -> Tensor:
        """Logits (I, L, S) that words (I, L) name slots that have names, (I, S, 13) probabilities."""
        phrases = F.gelu(self.around(self.words(words).transpose(1, 2))).transpose(1, 2)
        logits: Tensor = self.nothing - F.softplus(self.asked(phrases)) @ (1 - names).transpose(1, 2)
        return logits


class _Read(NamedTuple):
    """What is known before the last block.

    Attributes:
        perceived: of V readings.
        known: likewise, from which nothing is learned.
        collided: (V, C, S, S) probabilities of collisions, 0 of a slot with itself.
        names: (V, S, 13) probabilities.
        mentioned: (I, 32, S) logits of which words name what.
        said: likewise, probabilities, 0 of words that are no names.
        places: (I, L) of the words that are no padding, and of padding to the longest text.
        objects: (V, N, width) tokens of slots and of pairs of slots.
        text: (I, L + 1, width) tokens of words and of [CLS], see ``GroundedALOE._text``.
        seen: (I, N + L + 1) which of both are no padding.
    """

    perceived: Perceived
    known: Perceived
    collided: Tensor
    names: Tensor
    mentioned: Tensor
    said: Tensor
    places: Tensor
    objects: Tensor
    text: Tensor
    seen: Tensor


class GroundedALOE(Answerer):
    """A transformer over slots and pairs of slots, as they were perceived, words and [CLS]; see ``Answerer``."""

    # Choices are noise until perception works, and by then most of the read-out's ReLUs were dead.
    activation = nn.GELU
    is_name: Tensor

    def __init__(self, config: GroundedALOEConfig, slots: int, slot_dim: int) -> None:
        super().__init__(config, slots, slot_dim)
        width = config.width
        self.perception = Perception(config, slots, slot_dim)
        self.course = nn.Linear(config.tubelet * slot_dim, COURSE_WIDTH)
        known = config.perception + 2 * len(CONCEPTS) + COURSE_WIDTH
        self.summary = nn.Linear(config.steps * known, width)
        self.kind, self.slot = nn.Linear(len(NAMES), width), _embedding(slots, width)
        self.pair = nn.Linear(2 * width + config.steps * (config.perception + 1), width)
        self.slot_norm, self.pair_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.words = nn.Embedding(len(QUESTION_VOCABULARY), width)
        nn.init.normal_(self.words.weight, std=0.5)
        self.parts, self.positions, self.cls = _embedding(2, width), _embedding(TEXT, width), _embedding(1, width)
        self.blocks = _blocks(config, config.layers)
        self.norm = nn.LayerNorm(width)
        self.holds_head = self._head(self.choice_width, 1)
        self.naming, self.named = Naming(), nn.Linear(width, width)
        self.referring = Referring(width, slots)
        self.register_buffer("is_name", NAME_OF_WORD != NO_NAME, persistent=False)

    @property
    def answer_width(self) -> int:
        """See ``Answerer``."""
        return self.config.width + len(NAMES) + 4

    @property
    def choice_width(self) -> int:
        """See ``Answerer``."""
        return 5 * self.config.width + 16

    @property
    def hidden_matrices(self) -> list[nn.Parameter]:
        """See ``Answerer``."""
        return [p for p in self.blocks.parameters() if p.ndim == 2]

    def forward(self, slots: Tensor, words: Tensor, owner: Tensor, descriptive: Tensor) -> Logits:
        """See ``Answerer``."""
        read = self._before_last(slots, words, owner, descriptive)
        summary = self.norm(self._last(read.text, 1, read.seen, self._last.keys_values(read.objects)[owner])[:, 0])
        objects, text = self.norm(read.objects), self.norm(read.text[:, :-1])
        named = self._of_named(objects, causal_past(read.collided), owner, read.said)
        told = torch.cat([summary, named], dim=-1)
        correct, holds = self.choice_head(told).squeeze(-1), self.holds_head(told).squeeze(-1)
        said = read.said.take_along_dim(read.places[..., None], 1)
        asked = self.referring(
            summary[descriptive], text[descriptive], said[descriptive], objects, read.known, read.collided,
            owner[descriptive],
        )  # fmt: skip
        of_referents = self._of_referents(asked, read.names[owner[descriptive]])
        answer = of_referents.new_zeros(len(owner), of_referents.shape[1])
        answer[descriptive] = of_referents
        answer = self.answer_head(torch.cat([summary, answer], dim=-1))
        return Logits(answer, correct, read.mentioned, read.perceived, holds, asked)

    @torch.no_grad()
    def attention(self, slots: Tensor, words: Tensor, owner: Tensor, descriptive: Tensor) -> Tensor:
        """See ``Answerer``; there is one token of each slot, C is 1."""
        read = self._before_last(slots, words, owner, descriptive)
        tokens = torch.cat([read.objects[owner], read.text], dim=1)
        return self._last.attention(tokens, read.seen).mean(1)[:, -1:, : self.n_slots]

    @property
    def _last(self) -> Block:
        return cast(Block, self.blocks[-1])

    def _before_last(self, slots: Tensor, words: Tensor, owner: Tensor, descriptive: Tensor) -> _Read:
        slots = self.visible(slots)
        perceived: Perceived = self.perception(slots)
        # What is perceived, named and asked about is learned from annotations and programs alone; answers are learned
        # from it as it is.
        known = Perceived(*(values.detach().float() for values in perceived))
        itself = torch.eye(self.n_slots, dtype=torch.bool, device=slots.device)
        collided = known.collisions.sigmoid().masked_fill(itself, 0)
        names = known.concepts[..., : len(NAMES)].sigmoid().amax(1)  # of the frame that tells most
        objects = self._objects(self.tubelets(slots), known, collided, names)
        mentioned = self.naming(words, names[owner])
        said = mentioned.detach().sigmoid() * self.is_name[words][..., None]
        named = said @ self.named(objects[:, : self.n_slots])[owner]
        length = int((words != 0).sum(1).max())
        places = (words == 0).int().argsort(dim=1, stable=True)[:, :length]
        text, is_text = self._text(words, places, descriptive, named)
        seen = F.pad(is_text, (objects.shape[1], 0), value=True)
        for block in cast(Sequence[Block], self.blocks[:-1]):
            text = block(text, text.shape[1], seen, block.keys_values(objects)[owner])
            objects = block(objects, objects.shape[1])
        return _Read(perceived, known, collided, names, mentioned, said, places, objects, text, seen)

    def _of_named(self, objects: Tensor, past: Tensor, owner: Tensor, said: Tensor) -> Tensor:
        """What is known (I, 4 width + 16) of the slots and the pairs of slots that question and choice name.

        Args:
            objects: (V, N, width) tokens of slots and pairs.
            past: (V, N, N) see ``causal_past``.
            owner: see ``Batch``.
            said: (I, 32, S) which words name what.
        """
        in_choice = torch.arange(said.shape[1], device=said.device) >= QUESTION_WORDS
        slots = torch.stack([1 - (1 - said[:, part]).prod(1) for part in (~in_choice, in_choice)], dim=1)
        first, second = self.perception.first, self.perception.second
        pairs = slots[..., first] * slots[..., second]
        named = torch.cat([F.pad(slots, (0, pairs.shape[-1])), F.pad(pairs, (slots.shape[-1], 0))], dim=1)
        leads = named @ past[owner] @ named.transpose(1, 2)
        return torch.cat([(named @ objects[owner]).flatten(1), leads.flatten(1)], dim=-1)

    def _of_referents(self, asked: Asked, names: Tensor) -> Tensor:
        """What is known (I, 17) of what is asked about: names, how many slots and pairs, and whether there is any.

        Args:
            asked: about what; nothing is learned through it.
            names: (I, S, 13) of the slots.
        """
        chances = asked.referents.detach().sigmoid()
        slots, pairs = chances[:, : self.n_slots], chances[:, self.n_slots :]
        told = [(slots[:, None] @ names).squeeze(1)]
        for part in (slots, pairs):
            told += [part.sum(1, keepdim=True), part.amax(1, keepdim=True)]
        return torch.cat(told, dim=-1)

    def _objects(self, tubelets: Tensor, known: Perceived, collided: Tensor, names: Tensor) -> Tensor:
        """Tokens (V, S + S (S - 1) / 2, width) of slots and of pairs of them.

        A slot's holds its course, what was perceived of it, and of those that it collided with; a pair's what its two
        slots' hold and how these differ, and what was perceived of both: a text that names both finds in one place
        whether they collided, or came near each other.
        """
        concepts = known.concepts.sigmoid()
        course = torch.cat([known.tokens, concepts, collided @ concepts, self.course(tubelets)], dim=-1)
        tokens = self.slot_norm(self.summary(course.transpose(1, 2).flatten(2)) + self.kind(names) + self.slot)
        first, second = self.perception.first, self.perception.second
        both = torch.cat([known.pairs, collided[:, :, first, second, None]], dim=-1).transpose(1, 2).flatten(2)
        one, other = tokens[:, first], tokens[:, second]
        pairs = self.pair_norm(self.pair(torch.cat([one + other, (one - other).abs(), both], dim=-1)))
        return torch.cat([tokens, pairs], dim=1)

    def _text(self, words: Tensor, places: Tensor, descriptive: Tensor, named: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (I, L + 1, width) of words, with what they name (I, 32, width), and of [CLS]; which are no padding.

        L is the most words of an item; those of question and choice follow each other without the padding in between,
        which would be half of all tokens.
        """
        words = words.gather(1, places)
        in_question = ~descriptive[:, None] & (places < QUESTION_WORDS)
        text = self.words(words) + self.parts[in_question.long()] + self.positions[places]
        text = text + named.take_along_dim(places[..., None], 1)
        text = torch.cat([text, self.cls.expand(len(words), -1, -1)], dim=1)
        return text, F.pad(words != 0, (0, 1), value=True)


def _blocks(config: GroundedALOEConfig, count: int) -> nn.ModuleList:
    sizes = config.width, config.heads, config.mlp, config.dropout
    return nn.ModuleList(Block(*sizes) for _ in range(count))


def _embedding(*shape: int) -> nn.Parameter:
    return nn.Parameter(0.02 * torch.randn(shape))
