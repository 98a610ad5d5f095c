"""Picks each video's questions from the pools of all videos, so that little can be guessed without seeing them.

It must see all pools at once: answers that are balanced within each worker's share are not balanced in a split whose
shares differ. The videos are visited in a random order that depends on the seed alone, and each gets what is rarest so
far, so that an answer falls behind only where the scenes cannot supply it (few have five moving objects).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import comb, log
from typing import NamedTuple

import numpy as np

from envs.clevrer.questions.generate import Candidate, Option
from envs.clevrer.questions.templates import template
from envs.clevrer.questions.vocabulary import ANSWERS_OF, ngrams

# What a video is asked, at most; nearly all have all descriptive ones, not all have a next event or enough choices.
QUESTIONS = {
    "query_color": 2,
    "query_material": 1,
    "query_shape": 2,
    "count": 4,
    "exist": 2,
    "explanatory": 3,
    "predictive": 1,
    "counterfactual": 3,
}
MAX_IMBALANCE = 2  # of correct over wrong choices, or the reverse, within a type and within a template
# Most of the questions of a type whose choices are all correct or all wrong: with four tosses of a coin it is as often.
# More would reward a reader who always answers "nothing is responsible".
ALIKE_SHARE = 1 / 8


class Choices(NamedTuple):
    """How a type's questions are put together."""

    sizes: tuple[int, ...]  # numbers of choices, the preferred one first
    may_be_alike: bool  # whether all choices may be correct, or all wrong


CHOICES = {
    "explanatory": Choices((4, 3), True),
    "predictive": Choices((2,), False),
    "counterfactual": Choices((4, 3), False),
}


def balance(pools: Mapping[int, Sequence[Candidate]], seed: int) -> dict[int, list[Candidate]]:
    """The questions of each video, in the official order, with the choices that are asked.

    The answers of each descriptive subtype are equally frequent as far as the scenes supply them, and the words of a
    question tell as little of its answer as the pools allow. Within each type and template of the multiple-choice
    questions the correct choices outnumber the wrong ones, or the reverse, by ``MAX_IMBALANCE`` at most, and no more
    than ``ALIKE_SHARE`` of the explanatory questions have choices that are all alike, none of the others. Predictive
    questions have exactly one correct choice of two.

    Args:
        pools: what ``generate`` made, by scene index.
        seed: of the order and of what is left to chance.
    """
    rng = np.random.default_rng(seed)
    answers, choices = _Answers(), _Imbalance()
    picked: dict[int, list[Candidate]] = {scene: [] for scene in sorted(pools)}
    for scene in rng.permutation(list(picked)):
        pool = [pools[scene][index] for index in rng.permutation(len(pools[scene]))]
        for subtype, number in QUESTIONS.items():
            candidates = [candidate for candidate in pool if candidate.subtype == subtype]
            for _ in range(number):
                chosen = choices.pick(candidates, rng) if subtype in CHOICES else answers.pick(candidates)
                if chosen is None:
                    break
                picked[scene].append(chosen)
                candidates = [other for other in candidates if _matter(other) != _matter(chosen)]
    return {scene: sorted(questions, key=_place) for scene, questions in picked.items()}


def _matter(candidate: Candidate) -> list[str]:
    """What is asked about, whether negated or not."""
    return [token for token in candidate.program if token != "negate"]


def _place(candidate: Candidate) -> tuple[bool, bool, int]:
    # As in the released files: events, then motions, then multiple choice.
    motion = not {"filter_moving", "filter_stationary"}.isdisjoint(candidate.program)
    return candidate.subtype in CHOICES, motion, list(QUESTIONS).index(candidate.subtype)


class _Answers:
    """How often each answer was given so far, in each subtype, and to questions with each clue."""

    def __init__(self) -> None:
        self.given: Counter[tuple[str, str | None]] = Counter()
        self.suggested: Counter[tuple[str, str, str | None]] = Counter()
        self.clues: Counter[tuple[str, str]] = Counter()

    def pick(self, candidates: Sequence[Candidate]) -> Candidate | None:
        """The candidate with the rarest answer, and among those the one whose text suggests its answer least."""
        rarest = min((self.given[candidate.subtype, candidate.answer] for candidate in candidates), default=0)
        rare = [c for c in candidates if self.given[c.subtype, c.answer] == rarest]
        chosen = min(rare, key=self._suggestion, default=None)
        if chosen is not None:
            self.given[chosen.subtype, chosen.answer] += 1
            for clue in _clues(chosen):
                self.suggested[chosen.subtype, clue, chosen.answer] += 1
                self.clues[chosen.subtype, clue] += 1
        return chosen

    def _suggestion(self, candidate: Candidate) -> float:
        """How much likelier than another the answer is to a reader who counts clues, as naive Bayes does."""
        subtype, answers = candidate.subtype, len(ANSWERS_OF[candidate.subtype])
        return sum(
            log((self.suggested[subtype, clue, candidate.answer] + 1) / (self.clues[subtype, clue] + answers) * answers)
            for clue in _clues(candidate)
        )


def _clues(candidate: Candidate) -> list[str]:
    """What a reader who has not seen the video can go by: the form of the question, and its words."""
    return [template(candidate.text), *ngrams(candidate.text)]


class _Plan(NamedTuple):
    """A question with its choices, how many are correct, what they add to the groups, and how unbalanced these get."""

    question: Candidate
    correct: int
    change: Counter[str]
    cost: int


class _Imbalance:
    """By how many the correct choices of each group outnumber the wrong ones so far."""

    def __init__(self) -> None:
        self.of: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.alike: Counter[str] = Counter()

    def pick(self, candidates: Sequence[Candidate], rng: np.random.Generator) -> Candidate | None:
        """A candidate with some of its options, the number of correct ones as if each were the toss of a coin."""
        plans: dict[tuple[int, int], list[_Plan]] = {}
        for plan in (plan for candidate in candidates for plan in self._plans(candidate)):
            plans.setdefault((len(plan.question.options), plan.correct), []).append(plan)
        if not plans:
            return None
        size = max(size for size, _ in plans)
        numbers = [correct for plan_size, correct in plans if plan_size == size]
        odds = np.array([comb(size, correct) for correct in numbers], np.float64)
        correct = int(rng.choice(numbers, p=odds / odds.sum()))
        question, _, change, _ = min(plans[size, correct], key=lambda plan: plan.cost)
        self.of.update(change)
        self.asked[question.subtype] += 1
        self.alike[question.subtype] += correct in (0, size)
        return question.with_options(question.options[index] for index in rng.permutation(size))

    def _plans(self, candidate: Candidate) -> Iterator[_Plan]:
        """For each number of correct choices the best selection, if it leaves no group too unbalanced."""
        type = candidate.subtype
        sizes, may_be_alike = CHOICES[type]
        may_be_alike = may_be_alike and self.alike[type] + 1 <= ALIKE_SHARE * (self.asked[type] + 1)
        for correct in range(sizes[0] + 1):
            for size in sizes:
                if correct <= size and (may_be_alike or 0 < correct < size):
                    plan = self._plan(candidate, correct, size - correct)
                    if plan is not None:
                        yield plan
                        break

    def _plan(self, candidate: Candidate, correct: int, wrong: int) -> _Plan | None:
        change: Counter[str] = Counter()
        selected: list[Option] = []
        for answer, number, sign in (("correct", correct, 1), ("wrong", wrong, -1)):
            options = [option for option in candidate.options if option.answer == answer]
            for _ in range(number):
                if not options:
                    return None
                best = min(options, key=lambda option: sign * sum(self.of[g] + change[g] for g in option.groups))
                options.remove(best)
                selected.append(best)
                change.update(dict.fromkeys(best.groups, sign))
        after = [self.of[group] + difference for group, difference in change.items()]
        if any(abs(difference) > MAX_IMBALANCE for difference in after):
            return None
        cost = sum(difference**2 for difference in after)
        return _Plan(candidate.with_options(selected), correct, change, cost)
