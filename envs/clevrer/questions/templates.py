"""The sentences of CLEVRER's questions and choices, each with the program that says what it means.

They are those of the released files; "Are there any collisions that happen ..." alone is ours, by analogy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from envs.clevrer.questions.programs import Description, Program, collision_of, event_of
from envs.clevrer.questions.vocabulary import ATTRIBUTES, SHAPES, tokenize

MOTIONS = ("moving", "stationary")
# verb -> its operator; the files say "enter" and "exit" of what the operators call "in" and "out".
PASSAGES = {"enter": "filter_in", "exit": "filter_out"}
RELATIONS = ("before", "after")
STEMS = ("what", "which event", "which of the following")
PREDICTIVE = ("What will happen next?", "Which event will happen next?")
PREDICTIVE_PROGRAM = ["unseen_events", "belong_to"]


@dataclass(frozen=True)
class Phrase:
    """A text and its program; either may be a part of a longer one."""

    text: str
    program: Program


WHOLE_VIDEO = Phrase("", ["null"])
VIDEO_BEGINS = Phrase(" when the video begins", ["start", "get_frame"])
VIDEO_ENDS = Phrase(" when the video ends", ["end", "get_frame"])
ALL_EVENTS = Phrase("", ["events"])


def moment(verb: str, item: Description) -> Phrase:
    """When the object enters or exits, as a frame."""
    return Phrase(f" when the {item.noun} {verb}s the scene", [*event_of(item, PASSAGES[verb]), "get_frame"])


def relation(order: str, verb: str, item: Description) -> Phrase:
    """Before or after the object enters or exits, as the events of that time."""
    program = ["events", *event_of(item, PASSAGES[verb]), f"filter_{order}"]
    return Phrase(f" {order} the {item.noun} {verb}s the scene", program)


def count_passages(items: Description, verb: str, when: Phrase) -> Phrase:
    """How many objects enter or exit."""
    program = [*when.program, *items.objects, PASSAGES[verb], "count"]
    return Phrase(f"How many {items.noun}s {verb} the scene{when.text}?", program)


def exist_passages(items: Description, verb: str, when: Phrase) -> Phrase:
    """Whether any objects enter or exit."""
    program = [*when.program, *items.objects, PASSAGES[verb], "exist"]
    return Phrase(f"Are there any {items.noun}s that {verb} the scene{when.text}?", program)


def count_collisions(when: Phrase) -> Phrase:
    """How many collisions happen."""
    return Phrase(f"How many collisions happen{when.text}?", [*when.program, "objects", "filter_collision", "count"])


def exist_collisions(when: Phrase) -> Phrase:
    """Whether any collisions happen."""
    program = [*when.program, "objects", "filter_collision", "exist"]
    return Phrase(f"Are there any collisions that happen{when.text}?", program)


def count_motion(items: Description, motion: str, when: Phrase) -> Iterator[Phrase]:
    """How many objects move or stand, in either order of the words."""
    program = [*items.objects, *when.program, f"filter_{motion}", "count"]
    yield Phrase(f"How many {items.noun}s are {motion}{when.text}?", program)
    yield Phrase(f"How many {motion} {items.noun}s are there{when.text}?", program)


def exist_motion(items: Description, motion: str, when: Phrase) -> Phrase:
    """Whether any objects move or stand."""
    program = [*items.objects, *when.program, f"filter_{motion}", "exist"]
    return Phrase(f"Are there any {motion} {items.noun}s{when.text}?", program)


def query(attribute: str, item: Phrase) -> Iterator[Phrase]:
    """What color, material or shape an object is, asked in both ways."""
    program = [*item.program, f"query_{attribute}"]
    yield Phrase(f"What {attribute} is the {item.text}?", program)
    yield Phrase(f"What is the {attribute} of the {item.text}?", program)


def partner(item: Description, order: str | None) -> Phrase:
    """The first, second, last or (None) only object to collide with another."""
    pick = [order, "filter_order"] if order else ["unique"]
    program = ["events", *item.unique, "filter_collision", *pick, *item.unique, "get_col_partner"]
    return Phrase(f"{order + ' ' if order else ''}object to collide with the {item.noun}", program)


def passer(verb: str, order: str) -> Iterator[Phrase]:
    """The first, second or last object to enter or exit."""
    program = ["events", "objects", PASSAGES[verb], order, "filter_order", "get_object"]
    yield Phrase(f"{order} object that {verb}s the scene", program)
    yield Phrase(f"{order} object to {verb} the scene", program)


def mover(item: Description, motion: str, when: Phrase) -> Iterator[Phrase]:
    """The only one of the described objects that moves or stands."""
    program = [*item.objects, *when.program, f"filter_{motion}", "unique"]
    yield Phrase(f"{motion} {item.noun}{when.text}", program)
    yield Phrase(f"{item.noun} that is {motion}{when.text}", program)


def collision_noun(first: Description, second: Description) -> Iterator[Phrase]:
    """An observed collision as a noun."""
    program = collision_of(first, second)
    yield Phrase(f"the collision between the {first.noun} and the {second.noun}", program)
    yield Phrase(f"the {first.noun}'s colliding with the {second.noun}", program)


def exit_noun(item: Description) -> Iterator[Phrase]:
    """An exit as a noun."""
    yield Phrase(f"the {item.noun}'s exit", event_of(item, "filter_out"))
    yield Phrase(f"the {item.noun}'s exiting the scene", event_of(item, "filter_out"))


def entrance_noun(item: Description) -> Iterator[Phrase]:
    """An entrance as a noun."""
    yield Phrase(f"the {item.noun}'s entrance", event_of(item, "filter_in"))
    yield Phrase(f"the {item.noun}'s entering the scene", event_of(item, "filter_in"))


def presence_noun(item: Description) -> Phrase:
    """An object's presence."""
    return Phrase(f"the presence of the {item.noun}", item.unique)


def explanatory(event: Phrase, negated: bool) -> Phrase:
    """What is, or is not, responsible for an event that has a noun."""
    program = ["events", *event.program, "filter_ancestor", "belong_to", *_negate(negated)]
    return Phrase(f"Which of the following is {'not ' * negated}responsible for {event.text}?", program)


def collision_sentence(first: Description, second: Description) -> Iterator[Phrase]:
    """A possible collision as a sentence: the choices of predictive and counterfactual questions."""
    program = collision_of(first, second, "all_events")
    yield Phrase(f"The {first.noun} collides with the {second.noun}", program)
    yield Phrase(f"The {first.noun} and the {second.noun} collide", program)


def counterfactual(removed: Description, negated: bool) -> Iterator[Phrase]:
    """What will, or will not, happen without an object, in all twelve ways."""
    program = ["all_events", *removed.unique, "get_counterfact", "belong_to", *_negate(negated)]
    for stem in STEMS:
        for condition in (f"if the {removed.noun} is removed", f"without the {removed.noun}"):
            question = f"{stem} will {'not ' * negated}happen"
            yield Phrase(f"{condition.capitalize()}, {question}?", program)
            yield Phrase(f"{question.capitalize()} {condition}?", program)


def _negate(negated: bool) -> Program:
    return ["negate"] if negated else []


_NOUN = re.compile(rf"\b({'|'.join(SHAPES)})(?=\b|s\b)")
_ADJECTIVES = frozenset((*ATTRIBUTES["color"], *ATTRIBUTES["material"]))


def template(text: str) -> str:
    """A question or a choice with every description replaced by "object": what a reader knows before the details."""
    return _NOUN.sub("object", " ".join(word for word in tokenize(text) if word not in _ADJECTIVES))
