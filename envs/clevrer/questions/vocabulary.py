"""The closed vocabularies of CLEVRER's questions and answers, as ALOE and its successors number them.

Possessives and commas stay glued to their word ("cube's", "removed,"), and the question mark is dropped.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from envs.clevrer.scene import COLOURS, MATERIALS, SHAPES

# Named as in the questions and in the files, in the order of a phrase.
ATTRIBUTES: dict[str, tuple[str, ...]] = {"color": COLOURS, "material": MATERIALS, "shape": SHAPES}
NOUNS = (*SHAPES, "object")

COUNTS = tuple(str(count) for count in range(6))
ANSWERS_OF: dict[str, tuple[str, ...]] = {
    "count": COUNTS,
    "exist": ("yes", "no"),
    "query_color": COLOURS,
    "query_material": MATERIALS,
    "query_shape": SHAPES,
}

PAD = "PAD"
_FUNCTION_WORDS = """
after and any are before begins between collide collides colliding collision collisions color ends enter entering
enters entrance event exit exiting exits first following for happen how if is last many material moving next not of
presence removed removed, responsible scene second shape stationary that the there to video what when which will with
without
"""
_WORDS = {
    *_FUNCTION_WORDS.split(),
    *COLOURS,
    *MATERIALS,
    *(noun + ending for noun in NOUNS for ending in ("", "s", "'s", ",")),
}
QUESTION_VOCABULARY: dict[str, int] = {word: index for index, word in enumerate([PAD, *sorted(_WORDS)])}
ANSWER_VOCABULARY: dict[str, int] = {
    answer: index
    for index, answer in enumerate([PAD, *sorted(answer for answers in ANSWERS_OF.values() for answer in answers)])
}

QUESTION_WORDS = 20
CHOICE_WORDS = 12


def tokenize(text: str) -> list[str]:
    """The words of a question or a choice, lower-case and without the question mark."""
    return text.lower().replace("?", "").split()


def ngrams(text: str) -> list[str]:
    """The words of a text, and its pairs of neighbouring words: what a reader who knows no grammar can go by."""
    words = tokenize(text)
    return [*words, *map(" ".join, pairwise(words))]


def encode_question(question: str, choice: str | None = None) -> NDArray[np.int64]:
    """Word numbers (32,): a descriptive question padded to 32, or a question padded to 20 and a choice padded to 12.

    Raises:
        ValueError: if a word is not in the vocabulary, or the text is too long.
    """
    if choice is None:
        return _encode(question, QUESTION_WORDS + CHOICE_WORDS)
    return np.concatenate([_encode(question, QUESTION_WORDS), _encode(choice, CHOICE_WORDS)])


def encode_answer(answer: str) -> int:
    """The number of a descriptive answer, 1 to 21; raises ValueError for any other string."""
    if answer == PAD or answer not in ANSWER_VOCABULARY:
        raise ValueError(f"unknown answer {answer!r}; expected one of {sorted(ANSWER_VOCABULARY.keys() - {PAD})}")
    return ANSWER_VOCABULARY[answer]


def _encode(text: str, length: int) -> NDArray[np.int64]:
    words = tokenize(text)
    unknown = [word for word in words if word not in QUESTION_VOCABULARY]
    if unknown:
        raise ValueError(f"unknown words {unknown} in {text!r}; CLEVRER's vocabulary is closed")
    if len(words) > length:
        raise ValueError(f"{len(words)} words in {text!r}, at most {length} fit")
    numbers = np.zeros(length, np.int64)
    numbers[: len(words)] = [QUESTION_VOCABULARY[word] for word in words]
    return numbers
