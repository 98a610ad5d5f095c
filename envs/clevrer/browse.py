"""Scenes of a CLEVRER data set on one HTML page that needs no other file.

    python -m envs.clevrer.browse DATASET [--scene N ...] [--out page.html]

For each scene the page shows the video, the events over time, the causal graph, every question with its program run
step by step, and, where the data set tells them, the courses without each object beside the true one.
"""

from __future__ import annotations

import argparse
import sys
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jinja2
import numpy as np

from envs.clevrer.dataset import Dataset, facts_of, split_of
from envs.clevrer.events import Event
from envs.clevrer.physics import VISIBLE_FRAMES, Trajectory
from envs.clevrer.questions.executor import POSSIBLE, Events, Objects, ProgramError, execute, trace
from envs.clevrer.questions.facts import Facts, Object, shown_collisions
from envs.clevrer.questions.files import SPLITS, Json, QuestionFile
from envs.clevrer.render import PALETTE, CLEVRERRenderer
from envs.clevrer.scene import SceneObject
from envs.clevrer.video import FPS, encode_video
from envs.files import atomic

FILM = (240, 160)  # px, of the films that are drawn for the page
KINDS = {"in": "enters", "out": "exits"}
# Units of the drawings.
LEFT, LANE, FRAME, COLUMN = 170, 34, 4.5, 92

T = TypeVar("T")


class Lane(NamedTuple):
    """An object's row in the drawings; ``spans`` are the x from and to which the camera sees it."""

    name: str
    colour: str
    y: float
    spans: list[tuple[float, float]]


class Mark(NamedTuple):
    """An event in the drawings: ``rows`` are the y of its objects, ``x`` its time and ``column`` its order."""

    number: int
    text: str
    kind: str
    frame: int
    x: float
    column: float
    rows: list[float]

    @property
    def y(self) -> float:
        """Between its objects."""
        return sum(self.rows) / len(self.rows)


class Film(NamedTuple):
    """A video within the page, and what happens in it."""

    title: str
    source: str
    events: list[str]


class Run(NamedTuple):
    """A program: each token with what it leaves on the stack, the answer they lead to, and what went wrong."""

    steps: list[tuple[str, str]]
    answer: str
    error: str = ""


@dataclass
class SceneView:
    """What the page shows of a scene; what could not be read is empty and has a line in ``problems``."""

    index: int
    split: str
    video: str = ""
    lanes: list[Lane] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    edges: list[tuple[float, float, float, float]] = field(default_factory=list)
    films: list[Film] = field(default_factory=list)
    questions: list[Json] = field(default_factory=list)
    frames: int = VISIBLE_FRAMES
    problems: list[str] = field(default_factory=list)

    @property
    def last_frame(self) -> int:
        """Of the longest video of the scene."""
        return (self.frames if self.films else VISIBLE_FRAMES) - 1

    def attempt(self, read: Callable[[], T]) -> T | None:
        """What ``read`` returns, or None and a problem."""
        try:
            return read()
        except (OSError, ValueError) as error:
            self.problems.append(str(error))
            return None


def view(dataset: Dataset, index: int, questions: Callable[[str], QuestionFile]) -> SceneView:
    """Everything that can be read of a scene.

    Args:
        dataset: where the scene is.
        index: its number.
        questions: reads the questions of a split.

    Raises:
        FileNotFoundError: there is neither a video nor an annotation.
        ValueError: for a number that no scene has.
    """
    shown = SceneView(index, split_of(index))
    if index not in (*dataset.scenes("video", shown.split), *dataset.scenes("annotation", shown.split)):
        raise FileNotFoundError(f"{dataset.folder} has neither a video nor an annotation of scene {index}")
    if shown.attempt(lambda: dataset.video(index)) is not None:
        shown.video = _data_url(dataset.path("video", index).read_bytes())
    trajectory = shown.attempt(lambda: dataset.trajectory(index))
    counterfactuals = shown.attempt(lambda: dataset.counterfactuals(index))
    facts = facts_of(trajectory, counterfactuals) if trajectory else None
    if trajectory and facts:
        _draw_events(shown, trajectory, facts)
        if counterfactuals:
            shown.films = list(_films(trajectory, counterfactuals.without))
    file = shown.attempt(lambda: questions(shown.split))
    if file is not None:
        shown.problems += [problem for problem in file.problems if f"scene {index}:" in problem]
        entries = [entry for scene in file.scenes if scene["scene_index"] == index for entry in scene["questions"]]
        shown.questions = [_question(entry, facts) for entry in entries]
    return shown


def _data_url(video: bytes) -> str:
    return f"data:video/mp4;base64,{b64encode(video).decode()}"


def _draw_events(shown: SceneView, trajectory: Trajectory, facts: Facts) -> None:
    phrases = _phrases(trajectory.objects)
    rows = {id: LANE * (row + 1.0) for row, id in enumerate(trajectory.ids)}
    shown.frames = len(trajectory.inside)
    for column, item in enumerate(trajectory.objects):
        colour = "rgb({}, {}, {})".format(*PALETTE[item.colour])
        inside = np.flatnonzero(np.diff(trajectory.inside[:, column].astype(int), prepend=0, append=0))
        spans = [(LEFT + FRAME * float(start), LEFT + FRAME * float(stop)) for start, stop in inside.reshape(-1, 2)]
        shown.lanes.append(Lane(item.phrase, colour, rows[item.id], spans))
    for number, event in enumerate((*facts.events, *(facts.unseen or ())), start=1):
        places = (LEFT + FRAME * event.frame, LEFT + COLUMN * (number - 0.4))
        where = sorted(rows[id] for id in event.objects)
        shown.marks.append(Mark(number, _event(event, phrases), event.kind, event.frame, *places, where))
    graph = facts.graph
    seen = shown.marks[: len(graph.events)]  # what comes after them is not in the video
    for mark, objects, parents in zip(seen, graph.objects, graph.parents, strict=True):
        shown.edges += [(LEFT, rows[id], mark.column, mark.y) for id in sorted(objects)]
        causes = [shown.marks[parent] for parent in sorted(parents)]
        shown.edges += [(cause.column, cause.y, mark.column, mark.y) for cause in causes]


def _films(trajectory: Trajectory, without: Mapping[int, Trajectory]) -> Iterator[Film]:
    renderer = CLEVRERRenderer(*FILM)
    phrases = _phrases(trajectory.objects)
    courses = {f"without the {phrases[removed]}": course for removed, course in without.items()}
    for title, course in {"as it is": trajectory, **courses}.items():
        frames = np.stack([renderer.draw(course, frame)[0] for frame in range(len(course.inside))])
        events = [
            f"{_event(Event('collision', frozenset(c.ids), c.frame), phrases)} (frame {c.frame})"
            for c in shown_collisions(course)
        ]
        yield Film(title, _data_url(encode_video(frames)), events)


def _question(entry: Json, facts: Facts | None) -> Json:
    """A question as it is in the file, with the runs of its programs; a test file tells neither these nor answers."""
    program = entry.get("program", [])
    choices = [
        {"answer": "", **choice, "run": _run(facts, [*choice.get("program", []), *program], "correct", "wrong")}
        for choice in entry.get("choices", [])
    ]
    run = Run([], "") if choices else _run(facts, program)
    return {"answer": "", **entry, "choices": choices, "run": run}


def _run(facts: Facts | None, program: Sequence[str], yes: str = "yes", no: str = "no") -> Run:
    if not program:
        return Run([], "")
    tokens = [(token, "") for token in program]
    if facts is None:
        return Run(tokens, "", "what happens in the scene is not known")
    try:
        answer = execute(facts, program)
        steps = [(token, _text(value, _phrases(facts.objects))) for token, value in trace(facts, program)]
    except ProgramError as error:
        return Run(tokens, "", str(error))
    return Run(steps, {"yes": yes, "no": no}.get(answer, answer))


def _phrases(objects: Iterable[Object | SceneObject]) -> dict[int, str]:
    return {
        item.id: item.phrase if isinstance(item, SceneObject) else " ".join(item.attributes.values())
        for item in objects
    }


def _text(value: Any, phrases: dict[int, str]) -> str:
    """What lies on the stack, in words."""
    if isinstance(value, Objects | Events):
        return f"{len(value)}: " + "; ".join(_text(item, phrases) for item in value) if value else "none"
    if isinstance(value, Object):
        return phrases[value.id]
    if isinstance(value, Event):
        return _event(value, phrases) + (f" (frame {value.frame})" if value.frame != POSSIBLE else "")
    return f"frame {value}" if isinstance(value, int) else str(value)


def _event(event: Event, phrases: dict[int, str]) -> str:
    names = [phrases[id] for id in sorted(event.objects)]
    if event.kind == "collision":
        return f"{names[0]} and {names[1]} collide"
    return f"{names[0]} {KINDS[event.kind]}" if names else f"{event.kind} of the video"


def render(dataset: Dataset, scenes: Sequence[SceneView]) -> str:
    """The page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    sizes = {"left": LEFT, "lane": LANE, "frame": FRAME, "column": COLUMN}
    template = environment.get_template("browse.html")
    return template.render(name=dataset.folder.name, scenes=scenes, fps=FPS, visible=VISIBLE_FRAMES, sizes=sizes)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m envs.clevrer.browse", description="Show scenes of a CLEVRER data set on one HTML page."
    )
    parser.add_argument("dataset", type=Path, help="folder in CLEVRER's layout, ours or the released one")
    parser.add_argument("--scene", type=int, nargs="+", help="scene indices; by default the first of each split")
    parser.add_argument("--out", type=Path, default=Path("browse.html"), help="the page, by default browse.html")
    options = parser.parse_args(arguments)
    try:
        dataset = Dataset(options.dataset)
        every = [dataset.scenes("video", split) or dataset.scenes("annotation", split) for split in SPLITS]
        questions = cache(dataset.questions)
        chosen = options.scene or [scenes[0] for scenes in every if scenes]
        views = [view(dataset, index, questions) for index in chosen]
    except (OSError, ValueError) as error:
        parser.error(str(error))
    for problem in (problem for shown in views for problem in shown.problems):
        print(problem, file=sys.stderr)
    with atomic(options.out) as temporary:
        temporary.write_text(render(dataset, views), encoding="utf-8")
    print(f"{options.out}: scenes {', '.join(str(shown.index) for shown in views)}")


if __name__ == "__main__":
    main()
