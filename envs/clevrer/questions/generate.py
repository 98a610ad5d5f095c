"""Questions about one scene: drawn from the templates, executed, and kept if they have an answer.

What comes out is a pool, larger than what a video is asked and not balanced: ``balance`` picks from the pools of all
videos. Three rules keep answers from being guessed: an object is never singled out by the attribute that is asked for
alone ("the red object" would tell that another colour is the answer), a motion must be needed to single out what is
asked for, and explanatory choices about presence and entrance are about objects that take no part in the event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any, TypeVar

import numpy as np

from envs.clevrer.events import Event
from envs.clevrer.physics import Trajectory, simulate
from envs.clevrer.questions import templates
from envs.clevrer.questions.executor import ProgramError, execute, judge, trace
from envs.clevrer.questions.facts import Facts, Object, Pairs, shown_collisions
from envs.clevrer.questions.programs import ORDERS, Description, Program, subsets
from envs.clevrer.questions.templates import MOTIONS, PASSAGES, PREDICTIVE, RELATIONS, Phrase
from envs.clevrer.questions.vocabulary import ANSWERS_OF, ATTRIBUTES
from envs.clevrer.scene import Scene

DRAWS = 60  # descriptive questions tried per scene and subtype
CAUSES_ASKED = 4  # events per scene whose causes are asked for
PERTURBATIONS = 5

# How often the released explanatory questions tell which attributes of an object; those of a presence are often more
# than needed. The combinations left out are rarer than one in fifty.
EVENT_NAMES = {"color shape": 37, "color": 22, "shape": 22, "material shape": 14, "material": 3, "color material": 2}
PRESENCE_NAMES = {
    "color material shape": 26,
    "color shape": 23,
    "color material": 22,
    "color": 15,
    "material shape": 14,
}

NO_PAIRS: Pairs = frozenset()
Resimulate = Callable[[int, int], Trajectory]
T = TypeVar("T")


@dataclass(frozen=True)
class Option:
    """A choice of a question, its answer ("correct" or "wrong"), and the groups within which answers are balanced."""

    text: str
    program: Program
    answer: str
    groups: tuple[str, ...]


@dataclass(frozen=True)
class Candidate:
    """A question that could be asked.

    Attributes:
        subtype: ``count``, ``exist``, ``query_color`` ... of descriptive questions, else the question's type.
        text, program: the question.
        answer: of a descriptive question; None for multiple choice.
        options: the choices to pick from; empty for descriptive questions.
    """

    subtype: str
    text: str
    program: Program
    answer: str | None = None
    options: tuple[Option, ...] = ()

    def with_options(self, options: Iterable[Option]) -> Candidate:
        """The same question with other choices."""
        return replace(self, options=tuple(options))

    def to_json(self) -> dict[str, Any]:
        """Plain data, for handing it from a worker to the balancing."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Candidate:
        """The inverse of ``to_json``."""
        options = (Option(**{**option, "groups": tuple(option["groups"])}) for option in data["options"])
        return cls(**{**data, "options": tuple(options)})


def scene_pool(scene: Scene, seed: int, window: int | None = None) -> list[Candidate]:
    """The pool of a scene, the same for the same seed; see ``counterfactual_worlds`` for the window."""
    facts = Facts.of(simulate(scene))
    worlds = counterfactual_worlds(facts, resimulation(scene, seed), window)
    return generate(facts, np.random.default_rng(seed), worlds)


def resimulation(scene: Scene, seed: int) -> Resimulate:
    """Simulates the scene without an object: as it is for number 0, else perturbed by a draw from seed and number."""

    def resimulate(removed: int, number: int) -> Trajectory:
        start = scene.perturbed(np.random.default_rng([seed, number])) if number else scene
        return simulate(start, {removed: 0})

    return resimulate


def counterfactual_worlds(
    facts: Facts, resimulate: Resimulate, window: int | None = None, perturbations: int = PERTURBATIONS
) -> dict[int, list[Pairs]]:
    """The pairs that collide when an object is removed: in the scene itself, and then in perturbed ones.

    Only objects that collide in the video are removed: without one that touches nothing, what the video shows happens.

    Args:
        facts: what is known of the scene.
        resimulate: called with an object's id and a number, simulates the scene without the object. Number 0 means the
            scene itself, 1 to ``perturbations`` the scene with its start changed a little.
        window: collisions count before this frame: 128 for what the video would show; None for all that is simulated,
            the hidden frames included.
        perturbations: choices whose answer flips in one of so many perturbed scenes are left out of the questions.
    """
    colliding = sorted({id for event in facts.events if event.kind == "collision" for id in event.objects})
    return {
        removed: [
            frozenset(
                frozenset(collision.ids)
                for collision in shown_collisions(resimulate(removed, number))
                if window is None or collision.frame < window
            )
            for number in range(perturbations + 1)
        ]
        for removed in colliding
    }


def generate(
    facts: Facts, rng: np.random.Generator, worlds: Mapping[int, Sequence[Pairs]] | None = None
) -> list[Candidate]:
    """The pool of a scene.

    Args:
        facts: what is known of the scene, without ``without``, which ``worlds`` fills in.
        rng: seeded from the scene, so that its pool does not depend on who makes it.
        worlds: what collides without some object, see ``counterfactual_worlds``; without it nothing is asked about it.
    """
    worlds = worlds or {}
    facts = replace(facts, without={removed: exact for removed, (exact, *_) in worlds.items()})
    writer = _Writer(facts, rng)
    pool = [*writer.descriptive(), *writer.explanatory(), *writer.predictive()]
    for removed, (exact, *perturbed) in worlds.items():
        unstable = NO_PAIRS.union(*(exact ^ world for world in perturbed))
        pool += writer.counterfactual(removed, unstable)
    return pool


class _Writer:
    """Draws questions about a scene."""

    def __init__(self, facts: Facts, rng: np.random.Generator) -> None:
        self.facts = facts
        self.rng = rng
        self.names = {
            item.id: [name for name in subsets(item.attributes) if self._fitting(name) == [item]]
            for item in facts.objects
        }

    def _fitting(self, name: Description) -> list[Object]:
        return [item for item in self.facts.objects if name.fits(item.attributes)]

    def _pick(self, items: Iterable[T]) -> T:
        choices = list(items)
        return choices[self.rng.integers(len(choices))]

    def _name(self, id: int, weights: dict[str, int]) -> Description:
        # A name of a kind that is not listed, which is needed when no other is unique, still has a chance.
        weight = np.array([weights.get(" ".join(name.told), 1) for name in self.names[id]], np.float64)
        return self.names[id][self.rng.choice(len(weight), p=weight / weight.sum())]

    # Descriptive questions

    def descriptive(self) -> Iterator[Candidate]:
        for subtype, answers in ANSWERS_OF.items():
            seen: set[tuple[str, ...]] = set()
            for _ in range(DRAWS):
                phrase = self._draw(subtype)
                if phrase is None or tuple(phrase.program) in seen:
                    continue
                seen.add(tuple(phrase.program))
                try:
                    answer = execute(self.facts, phrase.program)
                except ProgramError:
                    continue
                if answer in answers:
                    yield Candidate(subtype, phrase.text, phrase.program, answer)

    def _draw(self, subtype: str) -> Phrase | None:
        """A question, or None where what was drawn is no fair one."""
        if subtype in ("count", "exist"):
            ask = self._pick([self._passages, self._collisions, self._motion, self._motion])
            return ask(subtype, self._set())
        attribute = subtype.removeprefix("query_")
        draw = self._pick([self._partner, self._passer, self._mover, self._mover])
        item = draw(attribute)
        return None if item is None else self._pick(templates.query(attribute, item))

    def _set(self) -> Description:
        """Up to two attributes, of an object of the scene or not."""
        attributes = {name: self._pick(values) for name, values in ATTRIBUTES.items()}
        if self.rng.random() < 0.5:
            attributes = dict(self._pick(self.facts.objects).attributes)
        told = self.rng.permutation(list(ATTRIBUTES))[: self.rng.integers(3)]
        return Description(**{name: attributes[name] for name in told})

    def _passages(self, subtype: str, items: Description) -> Phrase:
        ask = templates.count_passages if subtype == "count" else templates.exist_passages
        return ask(items, self._pick(PASSAGES), self._relation())

    def _collisions(self, subtype: str, items: Description) -> Phrase:
        ask = templates.count_collisions if subtype == "count" else templates.exist_collisions
        return ask(self._relation())

    def _motion(self, subtype: str, items: Description) -> Phrase:
        if subtype == "count":
            return self._pick(templates.count_motion(items, self._pick(MOTIONS), self._moment()))
        return templates.exist_motion(items, self._pick(MOTIONS), self._moment())

    def _relation(self) -> Phrase:
        passage = self._passage()
        if passage is None or self.rng.random() < 0.25:
            return templates.ALL_EVENTS
        return templates.relation(self._pick(RELATIONS), *passage)

    def _moment(self) -> Phrase:
        passage = self._passage()
        if passage is None or self.rng.random() < 0.6:
            return self._pick([templates.WHOLE_VIDEO, templates.VIDEO_BEGINS, templates.VIDEO_ENDS])
        return templates.moment(*passage)

    def _passage(self) -> tuple[str, Description] | None:
        """Somebody's entering or exit."""
        events = [event for event in self.facts.events if event.kind in ("in", "out")]
        if not events:
            return None
        event = self._pick(events)
        (id,) = event.objects
        return "enter" if event.kind == "in" else "exit", self._name(id, EVENT_NAMES)

    def _partner(self, attribute: str) -> Phrase | None:
        name = self._name(self._pick(self.facts.objects).id, EVENT_NAMES)
        order = self._pick([None, *ORDERS])
        phrase = templates.partner(name, order)
        if list(name.told) == [attribute] or (order and not self._ordered(phrase.program)):
            return None
        return phrase

    def _passer(self, attribute: str) -> Phrase | None:
        phrase = self._pick(templates.passer(self._pick(PASSAGES), self._pick(ORDERS)))
        return phrase if self._ordered(phrase.program) else None

    def _mover(self, attribute: str) -> Phrase | None:
        item = self._set()
        if attribute in item.told or len(self._fitting(item)) < 2:
            return None
        return self._pick(templates.mover(item, self._pick(MOTIONS), self._moment()))

    def _ordered(self, program: Program) -> bool:
        """Whether the events of which one is picked by its order are several, and at different times."""
        steps = trace(self.facts, program[: program.index("filter_order") - 1])
        frames = [event.frame for event in steps[-1].value]
        return len(frames) > 1 and len(set(frames)) == len(frames)

    # Multiple-choice questions

    def explanatory(self) -> Iterator[Candidate]:
        """Some events, each in both senses."""
        effects = [event for event in self.facts.events if event.kind in ("collision", "out")]
        for index in self.rng.permutation(len(effects))[:CAUSES_ASKED]:
            noun = self._noun(effects[index])
            for negated in (False, True):
                question = templates.explanatory(noun, negated)
                yield self._choose("explanatory", question, self._causes(effects[index]))

    def _causes(self, effect: Event) -> Iterator[tuple[Phrase, str]]:
        others = [item.id for item in self.facts.objects if item.id not in effect.objects]
        for id in others:
            yield templates.presence_noun(self._name(id, PRESENCE_NAMES)), ""
        for event in self.facts.events:
            if event.kind == "collision" and event != effect:
                # Sharing an object shows in the words, and most that do are causes.
                yield self._noun(event), "shares an object" if event.objects & effect.objects else "shares none"
            elif event.kind == "in" and event.objects.issubset(others):
                yield self._noun(event), ""

    def predictive(self) -> Iterator[Candidate]:
        """What happens next among the objects that the last frame shows."""
        if self.facts.unseen is not None:
            shown = [item.id for item in self.facts.objects if self.facts.visible[item.id][-1]]
            question = Phrase(self._pick(PREDICTIVE), templates.PREDICTIVE_PROGRAM)
            yield self._choose("predictive", question, self._pairs(shown))

    def counterfactual(self, removed: int, unstable: Pairs) -> Iterator[Candidate]:
        """What happens without an object, in both senses, and not asking about the ``unstable`` pairs."""
        others = [item.id for item in self.facts.objects if item.id != removed]
        name = self._name(removed, EVENT_NAMES)
        for negated in (False, True):
            question = self._pick(templates.counterfactual(name, negated))
            yield self._choose("counterfactual", question, self._pairs(others, unstable))

    def _choose(self, type: str, question: Phrase, choices: Iterable[tuple[Phrase, str]]) -> Candidate:
        """The question with all choices that have an answer; each choice comes with a mark of what its words show."""
        options = []
        for choice, mark in choices:
            try:
                answer = judge(self.facts, choice.program, question.program)
            except ProgramError:
                continue
            form = f"{templates.template(question.text)} / {templates.template(choice.text)}"
            groups = (type, form, f"{form} / {mark}") if mark else (type, form)
            options.append(Option(choice.text, choice.program, answer, groups))
        return Candidate(type, question.text, question.program, options=tuple(options))

    def _pairs(self, ids: Sequence[int], excluded: Pairs = NO_PAIRS) -> Iterator[tuple[Phrase, str]]:
        for pair in combinations(ids, 2):
            if frozenset(pair) not in excluded:
                names = (self._name(id, EVENT_NAMES) for id in self.rng.permutation(pair))
                yield self._pick(templates.collision_sentence(*names)), ""

    def _noun(self, event: Event) -> Phrase:
        """A collision, an entrance or an exit as a noun."""
        nouns: dict[str, Callable[..., Iterator[Phrase]]] = {
            "collision": templates.collision_noun,
            "in": templates.entrance_noun,
            "out": templates.exit_noun,
        }
        names = (self._name(id, EVENT_NAMES) for id in self.rng.permutation(sorted(event.objects)))
        return self._pick(nouns[event.kind](*names))
