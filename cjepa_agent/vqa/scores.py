"""Accuracy of answers, per question and per choice, with intervals, and what is mistaken for what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cjepa_agent.intervals import share_of
from cjepa_agent.vqa.submission import Graded
from envs.clevrer.questions.files import TYPES

GROUPS: Mapping[str, Callable[[Graded], str]] = {
    "type": lambda item: item.type,
    "subtype": lambda item: item.subtype,
    "template": lambda item: item.template,
}


@dataclass(frozen=True)
class Accuracy:
    """How many of a group are answered right.

    Attributes:
        group: ``type``, ``subtype`` or ``template``.
        name: which one; ``all`` are all questions together (a micro average).
        unit: ``question``, where all choices must be right, or ``choice``.
        hits: of each unit its scene and whether the model is right.
        baseline: right of the majority per template, None if it is not known.
    """

    group: str
    name: str
    unit: str
    hits: Sequence[tuple[int, bool]]
    baseline: int | None = None

    @property
    def number(self) -> int:
        """Of units."""
        return len(self.hits)

    @property
    def right(self) -> int:
        """Units that the model is right in."""
        return sum(right for _, right in self.hits)

    def summary(self) -> dict[str, Any]:
        """All of it with percentages, and a 95 % interval, see ``share_of``."""
        share = share_of(self.hits)
        return {
            "group": self.group,
            "name": self.name,
            "unit": self.unit,
            "number": self.number,
            "right": self.right,
            "accuracy": share["mean"],
            "low": share["low"],
            "high": share["high"],
            "baseline": None if self.baseline is None else 100 * self.baseline / self.number,
        }


def accuracies(graded: Sequence[Graded], baseline: Sequence[Graded] | None = None) -> list[Accuracy]:
    """Accuracy by type, of all questions, by subtype of descriptive questions, and by template.

    Args:
        graded: answers of the model, one or more.
        baseline: answers of the majority to the same questions, in the same order.
    """
    rows = []
    for group, key in GROUPS.items():
        names = {key(item) for item in graded} - {""}
        for name in sorted(names, key=lambda name: (TYPES.index(name) if name in TYPES else 0, name)):
            chosen = [number for number, item in enumerate(graded) if key(item) == name]
            mine, theirs = [graded[i] for i in chosen], baseline and [baseline[i] for i in chosen]
            rows.append(_per_question(group, name, mine, theirs))
            if mine[0].type != "descriptive":
                rows.append(_per_choice(group, name, mine, theirs))
    return [*rows, _per_question("type", "all", graded, baseline)]


def _per_question(group: str, name: str, mine: Sequence[Graded], theirs: Sequence[Graded] | None) -> Accuracy:
    baseline = sum(item.right for item in theirs) if theirs else None
    return Accuracy(group, name, "question", [(item.scene, item.right) for item in mine], baseline)


def _per_choice(group: str, name: str, mine: Sequence[Graded], theirs: Sequence[Graded] | None) -> Accuracy:
    hits = [(item.scene, hit) for item in mine for hit in item.hits]
    baseline = sum(hit for item in theirs for hit in item.hits) if theirs else None
    return Accuracy(group, name, "choice", hits, baseline)


def confusion(graded: Sequence[Graded]) -> dict[str, dict[str, dict[str, int]]]:
    """How often each answer was given where another one is right: of each subtype, or of each type without subtypes.

    Returns:
        By subtype, then by the right answer, then by the answer given; choices are counted one by one.
    """
    counts: dict[str, dict[str, Counter[str]]] = {}
    for item in graded:
        own = counts.setdefault(item.subtype or item.type, {})
        for given, expected in zip(item.given, item.expected, strict=True):
            own.setdefault(expected, Counter())[given] += 1
    return {
        name: {expected: dict(sorted(by_given.items())) for expected, by_given in sorted(own.items())}
        for name, own in sorted(counts.items())
    }


def table(rows: Sequence[Accuracy]) -> tuple[list[str], list[list[str]]]:
    """Header and cells for people, by type."""
    header = ["type", "per", "right", "95 % interval", "number", "majority per template"]
    summaries = [row.summary() for row in rows if row.group == "type"]
    return header, [
        [
            row["name"],
            row["unit"],
            f"{row['accuracy']:.1f} %",
            f"{row['low']:.1f} .. {row['high']:.1f} %",
            str(row["number"]),
            "" if row["baseline"] is None else f"{row['baseline']:.1f} %",
        ]
        for row in summaries
    ]
