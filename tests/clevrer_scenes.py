"""Scenes, and questions, that several CLEVRER tests look at."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from envs.clevrer import Scene, SceneObject, Trajectory, sample_scene, simulate
from envs.clevrer.annotation import annotate
from envs.clevrer.dataset import scene_paths
from envs.clevrer.questions import Candidate, balance, scene_entry, scene_pool, write_questions
from envs.clevrer.questions.files import QuestionFile

POOLS = 6  # of the random scenes, those whose questions are written


@lru_cache(maxsize=1)
def random_scenes() -> tuple[tuple[Scene, Trajectory], ...]:
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng, n_objects=3 + count % 4) for count in range(30)]
    return tuple((scene, simulate(scene)) for scene in scenes)


@lru_cache(maxsize=1)
def pools() -> dict[int, list[Candidate]]:
    return {index: scene_pool(scene, seed=index) for index, (scene, _) in enumerate(random_scenes()[:POOLS])}


def chain() -> Scene:
    """Object 0 hits 1, which then hits 2; object 3 passes by alone, and 4 rests."""
    return Scene(
        (
            SceneObject(0, "sphere", "red", "metal", (0.0, -1.5), (0.0, 2.0)),
            SceneObject(1, "cylinder", "blue", "rubber", (0.0, 0.0)),
            SceneObject(2, "cube", "green", "rubber", (0.05, 0.9), angle=0.2),
            SceneObject(3, "cube", "yellow", "metal", (-2.5, -2.0), (0.1, 1.4)),
            SceneObject(4, "sphere", "gray", "rubber", (1.0, 0.0)),
        )
    )


def same_motion(a: Trajectory, b: Trajectory, id: int, frames: slice = slice(None)) -> bool:
    """Whether the object moves alike to the last bit."""
    i, j = a.ids.index(id), b.ids.index(id)
    return all(
        np.array_equal(getattr(a, name)[frames, i], getattr(b, name)[frames, j])
        for name in ("location", "orientation", "velocity", "angular_velocity", "inside")
    )


def small_file(question: str = "What will happen next?", **changes: Any) -> QuestionFile:
    """One descriptive and one predictive question."""
    choices = [
        {"choice_id": 0, "choice": "The cube and the sphere collide", "answer": "wrong"},
        {"choice_id": 1, "choice": "The red cube collides with the gray metal sphere", "answer": "correct"},
    ]
    questions = [
        {"question_id": 0, "question": "How many cubes are moving when the video ends?", "question_type": "descriptive",
         "question_subtype": "count", "answer": "2"},
        {"question_id": 1, "question": question, "question_type": "predictive", "choices": choices, **changes},
    ]  # fmt: skip
    return QuestionFile(Path("train.json"), [{"scene_index": 0, "questions": questions}], [])


def write_asked_scenes(folder: Path) -> None:
    """Three training and two validation scenes with annotations and balanced questions, without videos."""
    rng = np.random.default_rng(5)
    for split, indices in (("train", (0, 1, 2)), ("validation", (10000, 10001))):
        pools = {}
        for index in indices:
            scene = sample_scene(rng, n_objects=4)
            path = scene_paths(folder, "annotation", index)[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(annotate(simulate(scene), index)))
            pools[index] = scene_pool(scene, index)
        entries = [scene_entry(index, questions) for index, questions in balance(pools, 0).items()]
        write_questions(folder / "questions", split, entries)
