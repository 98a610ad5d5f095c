"""CLEVRER's functional programs: lists of tokens in postfix order, and the pieces from which ours are put together.

A token is an operator or a literal (an attribute's value, ``first``, ``second``, ``last`` or ``null``). The released
question files and the parsed programs of NS-DR spell some operators differently; both spellings are read, and ours are
written as the question files have them. A choice's program comes before its question's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from envs.clevrer.questions.vocabulary import ATTRIBUTES

Program = list[str]

# NS-DR's spelling, and that of the question files.
ALIASES = {
    "filter_counterfact": "get_counterfact",
    "filter_resting": "filter_stationary",
    "query_collision_partner": "get_col_partner",
    "query_frame": "get_frame",
    "query_object": "get_object",
}
ORDERS = ("first", "second", "last")


@dataclass(frozen=True)
class Description:
    """Some attributes of an object, all that a phrase such as "the red cube" tells; None stands for "not told"."""

    color: str | None = None
    material: str | None = None
    shape: str | None = None

    @property
    def told(self) -> dict[str, str]:
        """The attributes that are told and their values, in the order of the words."""
        return {name: value for name in ATTRIBUTES if (value := getattr(self, name)) is not None}

    @property
    def noun(self) -> str:
        """The phrase without an article, "object" standing for an untold shape."""
        return " ".join([*self.told.values(), *([] if self.shape else ["object"])])

    @property
    def objects(self) -> Program:
        """The program whose result is all objects that fit."""
        return ["objects", *(token for name, value in self.told.items() for token in (value, f"filter_{name}"))]

    @property
    def unique(self) -> Program:
        """The program whose result is the one object that fits."""
        return [*self.objects, "unique"]

    def fits(self, attributes: Mapping[str, str]) -> bool:
        """Whether an object with these attributes (color, material, shape) is described."""
        return all(attributes[name] == value for name, value in self.told.items())


def subsets(attributes: Mapping[str, str]) -> Iterator[Description]:
    """All descriptions that tell at least one of an object's attributes (color, material, shape), shortest first."""
    for size in range(1, len(ATTRIBUTES) + 1):
        for names in combinations(ATTRIBUTES, size):
            yield Description(**{name: attributes[name] for name in names})


def canonical(program: Sequence[str]) -> Program:
    """The program in the spelling of the question files."""
    return [ALIASES.get(token, token) for token in program]


def event_of(description: Description, operator: str) -> Program:
    """The described object's only event of a kind; ``operator`` is ``filter_in`` or ``filter_out``."""
    return ["events", *description.unique, operator, "unique"]


def collision_of(first: Description, second: Description, source: str = "events") -> Program:
    """The only collision of two described objects among ``source``: ``events``, or ``all_events`` for possible ones."""
    return [source, *first.unique, "filter_collision", *second.unique, "filter_collision", "unique"]
