"""Scenes, and questions, that several CLEVRER tests look at."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from envs.clevrer import Scene, SceneObject, Trajectory, sample_scene, simulate
from envs.clevrer.questions import Candidate, scene_pool
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
