"""Runs functional programs over what is known of one scene: the one place that decides what an answer is.

The operators mean what they mean in NS-DR's executor (github.com/chuangg/CLEVRER), with one difference: the video ends
at its last frame, 127, and not at 125, which is the last that NS-DR sees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any, NamedTuple

from envs.clevrer.events import Event
from envs.clevrer.questions.facts import Facts, Object
from envs.clevrer.questions.programs import ORDERS, canonical
from envs.clevrer.questions.vocabulary import ATTRIBUTES

LITERALS = frozenset(("null", *ORDERS, *(value for values in ATTRIBUTES.values() for value in values)))
POSSIBLE = -1  # in place of the frame of a collision that may or may not happen


class ProgramError(ValueError):
    """A program without a result: an unknown token, an argument of a wrong kind, something that is not unique."""


class Objects(tuple[Object, ...]):
    """A set of objects on the stack."""


class Events(tuple[Event, ...]):
    """A set of events on the stack, in order of time. Beside what happens there are the events "start" and "end"."""


class Step(NamedTuple):
    """A token of a program and what lies on top of the stack after it."""

    token: str
    value: Any


def execute(facts: Facts, program: Sequence[str]) -> str:
    """The result of a program: an attribute's value, a count, "yes" or "no".

    Raises:
        ProgramError: if the program has no result for this scene; the message names the token and its place.
    """
    value = trace(facts, program)[-1].value
    if not isinstance(value, str):
        raise ProgramError(f"the program ends with {_kind(type(value))} instead of an answer: {' '.join(program)}")
    return value


def judge(facts: Facts, choice: Sequence[str], question: Sequence[str]) -> str:
    """Whether a choice is "correct" or "wrong", from its program and that of its question; errors as ``execute``."""
    result = execute(facts, [*choice, *question])
    if result not in ("yes", "no"):
        raise ProgramError(f"a choice must come out as yes or no, got {result!r}: {' '.join([*choice, *question])}")
    return "correct" if result == "yes" else "wrong"


def removed_object(facts: Facts, question: Sequence[str]) -> int:
    """Id of the object that the program of a counterfactual question takes away; errors as ``execute``."""
    program = canonical(question)
    if "get_counterfact" not in program:
        raise ProgramError(f"takes no object away: {' '.join(question)}")
    before = program[: program.index("get_counterfact")]
    begin = max((place for place, token in enumerate(before) if token == "objects"), default=0)
    value = trace(facts, before[begin:])[-1].value if before else None
    if not isinstance(value, Object):
        raise ProgramError(f"takes away {_kind(type(value))} instead of an object: {' '.join(question)}")
    return value.id


def trace(facts: Facts, program: Sequence[str]) -> list[Step]:
    """Every step of a program; errors as ``execute``."""
    stack: list[Any] = []
    steps = []
    for place, token in enumerate(canonical(program)):
        if token in LITERALS:
            stack.append(token)
        elif token in OPERATORS:
            operator = OPERATORS[token]
            count = len(operator.parameters)
            arguments = stack[len(stack) - count :] if count <= len(stack) else []
            try:
                operator.check(arguments)
                value = operator.function(facts, *arguments)
            except ProgramError as error:
                raise ProgramError(f"token {place}, {token}: {error}, in {' '.join(program)}") from None
            stack[len(stack) - count :] = [value]
        else:
            raise ProgramError(f"token {place}: unknown operator or value {token!r} in {' '.join(program)}")
        steps.append(Step(token, stack[-1]))
    if len(stack) != 1:
        raise ProgramError(f"the program leaves {len(stack)} values instead of one: {' '.join(program)}")
    return steps


@dataclass(frozen=True)
class Operator:
    """A function of the facts and of what it takes from the stack, the kinds of each parameter last on top."""

    function: Callable[..., Any]
    parameters: tuple[tuple[type, ...], ...]

    def check(self, arguments: Sequence[Any]) -> None:
        """Raises ProgramError unless the number and the kinds of the arguments fit."""
        if len(arguments) != len(self.parameters):
            raise ProgramError(f"takes {len(self.parameters)} arguments, but the stack holds fewer")
        for number, (argument, kinds) in enumerate(zip(arguments, self.parameters, strict=True), start=1):
            if not isinstance(argument, kinds):
                expected = " or ".join(map(_kind, kinds))
                raise ProgramError(f"argument {number} must be {expected}, got {_kind(type(argument))}")


def _kind(kind: type) -> str:
    return {int: "a frame", str: "a value", Object: "an object", Event: "an event"}.get(kind, kind.__name__.lower())


def _events(facts: Facts) -> Events:
    return Events((_start(facts), *facts.events, _end(facts)))


def _start(facts: Facts) -> Event:
    return Event("start", frozenset(), 0)


def _end(facts: Facts) -> Event:
    return Event("end", frozenset(), facts.frames - 1)


def _all_events(facts: Facts) -> Events:
    pairs = combinations((item.id for item in facts.objects), 2)
    return Events(Event("collision", frozenset(pair), POSSIBLE) for pair in pairs)


def _unseen_events(facts: Facts) -> Events:
    if facts.unseen is None:
        raise ProgramError("what happens after this video is not known")
    return Events(facts.unseen)


def _filter_attribute(name: str, facts: Facts, objects: Objects, value: str) -> Objects:
    if value not in ATTRIBUTES[name]:
        raise ProgramError(f"{value!r} is not a {name}")
    return Objects(item for item in objects if item.attributes[name] == value)


def _filter_motion(moving: bool, facts: Facts, objects: Objects, frame: int | str) -> Objects:
    if isinstance(frame, str):
        if frame != "null":
            raise ProgramError(f"{frame!r} is not a frame")
        return Objects(item for item in objects if (facts.visible[item.id] & facts.moving[item.id]).any() == moving)
    if frame >= facts.frames:
        raise ProgramError(f"what moves in frame {frame} of {facts.frames} is not known")
    return Objects(item for item in objects if facts.visible[item.id][frame] and facts.moving[item.id][frame] == moving)


def _filter_kind(kind: str, facts: Facts, events: Events, objects: Objects | Object) -> Events:
    ids = {objects.id} if isinstance(objects, Object) else {item.id for item in objects}
    return Events(event for event in events if event.kind == kind and ids & event.objects)


def _filter_order(facts: Facts, events: Events, order: str) -> Event:
    if order not in ORDERS:
        raise ProgramError(f"{order!r} is not one of {list(ORDERS)}")
    index = {"first": 0, "second": 1, "last": -1}[order]
    if index >= len(events) or not events:
        raise ProgramError(f"there is no {order} of {len(events)} events")
    return events[index]


def _filter_before(facts: Facts, events: Events, event: Event) -> Events:
    return Events(other for other in events if _get_frame(facts, other) < _get_frame(facts, event))


def _filter_after(facts: Facts, events: Events, event: Event) -> Events:
    return Events(other for other in events if _get_frame(facts, other) > _get_frame(facts, event))


def _get_frame(facts: Facts, event: Event) -> int:
    if event.frame == POSSIBLE:
        raise ProgramError("a possible collision has no frame")
    return event.frame


def _pseudo_event(kind: str, facts: Facts, events: Events) -> Event:
    event: Event = _unique(facts, Events(event for event in events if event.kind == kind))
    return event


def _filter_ancestor(facts: Facts, events: Events, event: Event) -> Events:
    if event not in facts.events:
        raise ProgramError(f"takes an event of the video, got {event}")
    causes = {facts.events[place] for place in facts.graph.ancestors(facts.events.index(event))}
    return Events(other for other in events if other in causes)


def _get_counterfact(facts: Facts, events: Events, removed: Object) -> Events:
    if removed.id not in facts.without:
        raise ProgramError(f"what happens without object {removed.id} is not known")
    return Events(event for event in events if event.kind == "collision" and event.objects in facts.without[removed.id])


def _get_object(facts: Facts, event: Event) -> Object:
    if event.kind not in ("in", "out"):
        raise ProgramError(f"takes an entering or an exit, got {event.kind}")
    return _object(facts, event.objects)


def _get_col_partner(facts: Facts, event: Event, item: Object) -> Object:
    if event.kind != "collision" or item.id not in event.objects:
        raise ProgramError(f"takes a collision of object {item.id}, got {event}")
    return _object(facts, event.objects - {item.id})


def _object(facts: Facts, ids: frozenset[int]) -> Object:
    return next(item for item in facts.objects if {item.id} == ids)


def _query(name: str, facts: Facts, item: Object) -> str:
    return item.attributes[name]


def _unique(facts: Facts, items: Objects | Events) -> Any:
    if len(items) != 1:
        raise ProgramError(f"takes exactly one item, got {len(items)}")
    return items[0]


def _count(facts: Facts, items: Objects | Events) -> str:
    return str(len(items))


def _exist(facts: Facts, items: Objects | Events) -> str:
    return "yes" if items else "no"


def _negate(facts: Facts, answer: str) -> str:
    if answer not in ("yes", "no"):
        raise ProgramError(f"takes yes or no, got {answer!r}")
    return "no" if answer == "yes" else "yes"


def _belong_to(facts: Facts, entry: Object | Event, events: Events) -> str:
    if isinstance(entry, Object):
        return _exist(facts, Events(event for event in events if entry.id in event.objects))
    return _exist(
        facts, Events(event for event in events if (event.kind, event.objects) == (entry.kind, entry.objects))
    )


_SETS = (Objects, Events)
OPERATORS: dict[str, Operator] = {
    "objects": Operator(lambda facts: Objects(facts.objects), ()),
    "events": Operator(_events, ()),
    "all_events": Operator(_all_events, ()),
    "unseen_events": Operator(_unseen_events, ()),
    "start": Operator(_start, ()),
    "end": Operator(_end, ()),
    "filter_start": Operator(partial(_pseudo_event, "start"), ((Events,),)),
    "filter_end": Operator(partial(_pseudo_event, "end"), ((Events,),)),
    "filter_moving": Operator(partial(_filter_motion, True), ((Objects,), (int, str))),
    "filter_stationary": Operator(partial(_filter_motion, False), ((Objects,), (int, str))),
    **{
        f"filter_{kind}": Operator(partial(_filter_kind, kind), ((Events,), (Objects, Object)))
        for kind in ("in", "out", "collision")
    },
    "filter_order": Operator(_filter_order, ((Events,), (str,))),
    "filter_before": Operator(_filter_before, ((Events,), (Event,))),
    "filter_after": Operator(_filter_after, ((Events,), (Event,))),
    "filter_ancestor": Operator(_filter_ancestor, ((Events,), (Event,))),
    "get_frame": Operator(_get_frame, ((Event,),)),
    "get_object": Operator(_get_object, ((Event,),)),
    "get_col_partner": Operator(_get_col_partner, ((Event,), (Object,))),
    "get_counterfact": Operator(_get_counterfact, ((Events,), (Object,))),
    **{f"filter_{name}": Operator(partial(_filter_attribute, name), ((Objects,), (str,))) for name in ATTRIBUTES},
    **{f"query_{name}": Operator(partial(_query, name), ((Object,),)) for name in ATTRIBUTES},
    "unique": Operator(_unique, (_SETS,)),
    "count": Operator(_count, (_SETS,)),
    "exist": Operator(_exist, (_SETS,)),
    "negate": Operator(_negate, ((str,),)),
    "belong_to": Operator(_belong_to, ((Object, Event), (Events,))),
}


def unknown_tokens(program: Sequence[object]) -> list[object]:
    """What in a program is neither an operator nor a literal, in either spelling."""
    known = OPERATORS.keys() | LITERALS
    return [token for token in program if not isinstance(token, str) or canonical([token])[0] not in known]
