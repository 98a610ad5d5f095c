"""How much of a CLEVRER-style data set can be answered without looking at the videos.

    python -m envs.clevrer.audit DATASET

prints how answers are distributed, and what two models reach that read nothing but the questions: the most frequent
answer of each template, and a linear classifier of words, pairs of words, and words that a question and its choice
share. Both are fitted on the training questions and scored on the validation questions. Beside them stand the numbers
of CLEVRER's own text-only model, an LSTM (arXiv 1910.01442, tables 2 and 3, test split).

DATASET is a folder with ``questions/train.json`` and ``questions/validation.json``, or with these files in it; the
released files, where the latter may be called ``val.json``, are read as well.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from typing import Any

from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from envs.clevrer.dataset import question_file
from envs.clevrer.questions.files import TYPES, Json, read_questions
from envs.clevrer.questions.templates import template
from envs.clevrer.questions.vocabulary import ATTRIBUTES, ngrams, tokenize
from envs.files import atomic

# Of CLEVRER's LSTM.
PUBLISHED = {
    ("descriptive", "question"): 0.347,
    ("explanatory", "question"): 0.136,
    ("explanatory", "choice"): 0.597,
    ("predictive", "question"): 0.232,
    ("predictive", "choice"): 0.506,
    ("counterfactual", "question"): 0.031,
    ("counterfactual", "choice"): 0.538,
}
DETAILS = frozenset(value for values in ATTRIBUTES.values() for value in values)
SHOWN_PROBLEMS = 10
STRENGTHS = (0.01, 0.1, 1.0)  # of the classifier, the inverse of its regularisation
Reader = Callable[[Sequence["Item"]], Sequence[str]]  # answers items


@dataclass(frozen=True)
class Item:
    """One thing to answer from text alone: a descriptive question, or a choice of another question.

    Attributes:
        question: number of the question, the same for all its choices.
        scene: scene index.
        template: the text with every description replaced by "object".
        features: words and pairs of words.
        answer: a descriptive answer, or "correct" or "wrong".
    """

    question: int
    scene: int
    template: str
    features: frozenset[str]
    answer: str


@dataclass(frozen=True)
class Score:
    """What text-only models get right of one question type, as shares.

    Attributes:
        type: question type.
        unit: "question", where all choices of a question must be right, or "choice".
        number: of units scored.
        majority, words: of the two models.
        published: of CLEVRER's LSTM on CLEVRER.
        coin: expected of a coin's toss for each choice; None for descriptive questions.
    """

    type: str
    unit: str
    number: int
    majority: float
    words: float
    published: float
    coin: float | None


def items_of(scenes: Iterable[Json], type: str) -> list[Item]:
    """All items of a question type."""
    items = []
    number = 0
    for scene in scenes:
        for question in scene["questions"]:
            if question["question_type"] != type:
                continue
            for choice in question.get("choices", [None]):
                items.append(_item(number, scene["scene_index"], question, choice))
            number += 1
    return items


def _item(number: int, scene: int, question: Json, choice: Json | None) -> Item:
    text = question["question"]
    features = {f"question {words}" for words in ngrams(text)}
    form = template(text)
    if choice is not None:
        common = set(tokenize(text)) & set(tokenize(choice["choice"])) & DETAILS
        # What a choice means depends on "not" in its question and on what it is a choice about.
        form = f"{form} / {template(choice['choice'])}"
        features |= {f"choice {words}" for words in ngrams(choice["choice"])}
        features |= {f"common {word}" for word in common}
        features |= {f"{len(common)} common, {form}"}
    return Item(number, scene, form, frozenset(features | {form}), (choice or question)["answer"])


def majority(train: Sequence[Item]) -> Reader:
    """The most frequent answer of an item's template in ``train``, or of all items where the template is new."""
    overall = Counter(item.answer for item in train)
    by_template: dict[str, Counter[str]] = {}
    for item in train:
        by_template.setdefault(item.template, Counter())[item.answer] += 1
    return lambda items: [by_template.get(item.template, overall).most_common(1)[0][0] for item in items]


def linear_classifier(train: Sequence[Item], strength: float) -> Reader:
    """Logistic regression on sets of features."""
    answers = [item.answer for item in train]
    if len(set(answers)) < 2:  # nothing to tell apart
        return majority(train)
    words = CountVectorizer(analyzer=lambda item: item.features)
    reader: Reader = make_pipeline(words, LogisticRegression(C=strength, max_iter=1000)).fit(train, answers).predict
    return reader


def fit_classifier(train: Sequence[Item]) -> Reader:
    """The linear classifier that does best on the last tenth of the training scenes, fitted to all."""
    scenes = sorted({item.scene for item in train})
    held_out = set(scenes[-max(len(scenes) // 10, 1) :])
    inside = [item for item in train if item.scene not in held_out] or train
    outside = [item for item in train if item.scene in held_out]
    best = max(STRENGTHS, key=lambda strength: _accuracy(outside, linear_classifier(inside, strength))["choice"])
    return linear_classifier(train, best)


def _accuracy(items: Sequence[Item], reader: Reader) -> dict[str, float]:
    """Shares of the questions of which all items are right, and of the items that are right."""
    right = [answer == item.answer for answer, item in zip(reader(items), items, strict=True)]
    missed = {item.question for item, hit in zip(items, right, strict=True) if not hit}
    questions = {item.question for item in items}
    return {"question": 1 - len(missed) / len(questions), "choice": sum(right) / len(right)}


def audit(train: Sequence[Json], validation: Sequence[Json]) -> list[Score]:
    """The scores of each type that both splits have questions of."""
    scores = []
    for type in TYPES:
        fitted, scored = items_of(train, type), items_of(validation, type)
        if not fitted or not scored:
            continue
        sizes = Counter(item.question for item in scored)
        numbers = {"question": len(sizes), "choice": len(scored)}
        coins: dict[str, float | None] = {
            "question": sum(0.5**size for size in sizes.values()) / len(sizes),
            "choice": 0.5,
        }
        by_template, by_words = _accuracy(scored, majority(fitted)), _accuracy(scored, fit_classifier(fitted))
        for unit in ("question",) if type == "descriptive" else ("question", "choice"):
            coin = None if type == "descriptive" else coins[unit]
            published = PUBLISHED[type, unit]
            scores.append(Score(type, unit, numbers[unit], by_template[unit], by_words[unit], published, coin))
    return scores


def distributions(scenes: Sequence[Json]) -> dict[str, dict[str, int]]:
    """How often each answer is given: by descriptive subtype, and of the choices of the other types."""
    counts: dict[str, Counter[str]] = {}
    for scene in scenes:
        for question in scene["questions"]:
            name = question.get("question_subtype", question["question_type"])
            answers = counts.setdefault(name, Counter())
            answers.update(choice["answer"] for choice in question.get("choices", [question]))
    return {name: dict(sorted(answers.items())) for name, answers in sorted(counts.items())}


def report(train: Sequence[Json], validation: Sequence[Json], scores: Sequence[Score]) -> str:
    """The audit as text."""
    questions = sum(len(scene["questions"]) for scene in (*train, *validation))
    lines = [f"{len(train)} training and {len(validation)} validation scenes, {questions} questions", "", "answers"]
    for name, answers in distributions([*train, *validation]).items():
        lines.append(f"  {name:15}" + "  ".join(f"{answer} {count}" for answer, count in answers.items()))
    lines += [
        "",
        "percent right without the video (95 % interval as of independent items)",
        "CLEVRER is its LSTM on its test split, coin a toss for each",
        f"  {'':28}{'number':>8}  {'template':>8}  {'words':>14}  {'CLEVRER':>7}  {'coin':>5}",
    ]
    for score in scores:
        spread = 1.96 * sqrt(score.words * (1 - score.words) / score.number)
        coin = "-" if score.coin is None else f"{100 * score.coin:.1f}"
        lines.append(
            f"  {f'{score.type}, per {score.unit}':28}{score.number:8}  {100 * score.majority:8.1f}"
            f"  {100 * score.words:6.1f} +- {100 * spread:4.1f}  {100 * score.published:7.1f}  {coin:>5}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m envs.clevrer.audit", description="Audit CLEVRER-style questions.")
    parser.add_argument("dataset", type=Path, help="folder with questions/train.json and questions/validation.json")
    parser.add_argument("--json", type=Path, help="write scores and distributions to this file as well")
    options = parser.parse_args(arguments)
    splits = {}
    for split in ("train", "validation"):
        try:
            file = read_questions(question_file(options.dataset, split))
        except (OSError, ValueError) as error:
            parser.error(str(error))
        for problem in file.problems[:SHOWN_PROBLEMS]:
            print(problem, file=sys.stderr)
        if len(file.problems) > SHOWN_PROBLEMS:
            print(f"... and {len(file.problems) - SHOWN_PROBLEMS} more", file=sys.stderr)
        splits[split] = file.scenes
    scores = audit(**splits)
    print(report(**splits, scores=scores))
    if options.json:
        result: dict[str, Any] = {split: distributions(scenes) for split, scenes in splits.items()}
        result["scores"] = [asdict(score) for score in scores]
        with atomic(options.json) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
