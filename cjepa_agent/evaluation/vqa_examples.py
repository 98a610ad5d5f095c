"""Pictures of questions: the frames that were read, what the model attended to, and what it took for asked about."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from cjepa_agent.vqa.answerer import Answerer
from cjepa_agent.vqa.causal_past import nodes
from cjepa_agent.vqa.data import NOTHING, SlotQuestions
from cjepa_agent.vqa.submission import Graded
from envs.clevrer.dataset import Dataset
from envs.clevrer.questions.files import TYPES, Json
from envs.files import atomic

SHOWN = 8  # frames at least, where a token is about more time
COLUMN, ROW, GAP = 64, 12, 6  # px: width of a frame, height of a slot's row, space between parts
HOT = np.array([178.0, 24.0, 43.0])  # colour of the largest weight


def write_examples(
    folder: Path,
    data: Dataset,
    model: Answerer,
    questions: SlotQuestions,
    scenes: Sequence[Json],
    graded: Sequence[Graded],
) -> list[tuple[Path, str]]:
    """Draw the first question of each type that was answered right, and the first that was not.

    Args:
        folder: where ``vqa_<type>_<right or wrong>.png`` is written.
        data: where the videos are; without them only attention is drawn.
        model: what answered.
        questions: all of them, as the model reads them.
        scenes: all of them, as text.
        graded: all of them, with answers.

    Returns:
        Each picture with its caption.
    """
    texts = [question for scene in scenes for question in scene["questions"]]
    media = []
    for type in TYPES:
        for right in (True, False):
            chosen = next((i for i, item in enumerate(graded) if item.type == type and item.right is right), None)
            if chosen is None:
                continue
            path = folder / f"vqa_{type}_{'right' if right else 'wrong'}.png"
            with atomic(path) as temporary:
                draw(data, model, questions, chosen).save(temporary, format="PNG")
            lines = caption(texts[chosen], graded[chosen]), *asked_about(model, questions, chosen)
            media.append((path, "\n".join(lines)))
    return media


def caption(question: Json, item: Graded) -> str:
    """The question with the model's answers and the true ones."""
    lines = [f"{item.type}, scene {item.scene}: {question['question']}"]
    texts = [f"{choice['choice']}: " for choice in question["choices"]] if "choices" in question else [""]
    for text, given, expected in zip(texts, item.given, item.expected, strict=True):
        lines.append(f"{'✓' if given == expected else '✗'} {text}model {given}, truth {expected}")
    return "\n".join([*lines, "Rows: attention of [CLS] to each slot in the last layer, one block per answer."])


@torch.no_grad()
def asked_about(model: Answerer, questions: SlotQuestions, chosen: int) -> list[str]:
    """A line on which slots and pairs of slots a descriptive question is about; none of a model that does not tell."""
    batch = questions.batch(np.array([chosen])).to(next(model.parameters()).device)
    asked = model(batch.slots, batch.words, batch.owner, batch.descriptive).asked
    if asked is None or not batch.descriptive.any():
        return []
    first, second = (ends.tolist() for ends in nodes(model.n_slots))
    found = [{first[n], second[n]} for n in (asked.referents[0] > 0).nonzero().flatten().tolist()]
    told = [" and ".join(f"slot {slot}" for slot in sorted(ends)) for ends in found]
    return [f"Asked about, as the model sees it: {'; '.join(told) or 'nothing in this video'}."]


def draw(data: Dataset, model: Answerer, questions: SlotQuestions, chosen: int) -> Image.Image:
    """Frames of a question in a row, evenly from all; below them, per item, the attention to each slot."""
    batch = questions.batch(np.array([chosen])).to(next(model.parameters()).device)
    weights = model.attention(batch.slots, batch.words, batch.owner, batch.descriptive).cpu().numpy()
    weights = weights.repeat(max(1, min(SHOWN, model.config.frames) // weights.shape[1]), axis=1)
    parts = [_film(data, questions, chosen, weights.shape[1]), *(_heat(item) for item in weights)]
    gap = np.full((GAP, parts[-1].shape[1], 3), 255, np.uint8)
    return Image.fromarray(np.concatenate([piece for part in parts for piece in (part, gap)]))


def _film(data: Dataset, questions: SlotQuestions, chosen: int, columns: int) -> NDArray[np.uint8]:
    """Frames read (COLUMN, columns * COLUMN, 3), evenly from all; grey where there is no video, as of predictions."""
    frames = questions.reading(chosen, questions.starts // 2).frames
    shown = [part[len(part) // 2] for part in np.array_split(frames, columns)]
    grey = np.full((COLUMN, COLUMN, 3), 200, np.uint8)
    if questions.removed[chosen] != NOTHING:
        return np.tile(grey, (1, len(shown), 1))
    try:
        video = data.video(int(questions.scene[chosen]))
    except (OSError, ValueError):  # released videos may be missing, cut short or unreadable
        return np.tile(grey, (1, len(shown), 1))
    return np.concatenate(
        [np.asarray(Image.fromarray(video[f]).resize((COLUMN, COLUMN))) if f < len(video) else grey for f in shown],
        axis=1,
    )


def _heat(weights: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Weights (C, S) as one row per slot and one column per tubelet, from white to ``HOT`` for the largest."""
    share = (weights.T / max(float(weights.max()), 1e-12))[:, :, None]
    colours: NDArray[np.uint8] = (255 + share * (HOT - 255)).round().astype(np.uint8)
    return colours.repeat(ROW, axis=0).repeat(COLUMN, axis=1)
