"""Answers to CLEVRER questions, found a second way: from what a question says, and not from its program."""

import re

import numpy as np
import pytest
from clevrer_scenes import POOLS, pools, random_scenes

from envs.clevrer import Scene, Trajectory, sample_scene, simulate
from envs.clevrer.physics import VISIBLE_FRAMES
from envs.clevrer.questions import Candidate, encode_question, scene_pool
from envs.clevrer.questions.vocabulary import ANSWERS_OF, ATTRIBUTES


class Direct:
    """Answers questions from their text, with the frames of the events counted out by hand."""

    WHEN = r"(?: (?P<order>before|after) the (?P<who>.+) (?P<verb>enters|exits) the scene)?"
    MOMENT = r"(?: when the (?:video (?P<edge>begins|ends)|(?P<who>.+) (?P<verb>enters|exits) the scene))?"
    MOTION = "(?P<motion>moving|stationary)"

    def __init__(self, scene: Scene, trajectory: Trajectory) -> None:
        self.scene = scene
        self.names = {item.id: (item.colour, item.material, item.shape) for item in scene.objects}
        self.inside = {id: list(trajectory.inside[:, k]) for k, id in enumerate(trajectory.ids)}
        self.speed = {
            id: [float(np.hypot(vx, vy)) for vx, vy, _ in trajectory.velocity[:, k]]
            for k, id in enumerate(trajectory.ids)
        }
        self.passages: dict[str, dict[int, int]] = {"enter": {}, "exit": {}}
        for id, seen in self.inside.items():
            for frame in range(1, VISIBLE_FRAMES):
                if seen[frame] != seen[frame - 1]:
                    self.passages["enter" if seen[frame] else "exit"][id] = frame
        self.hits = [(c.frame, set(c.ids)) for c in trajectory.collisions if c.frame < VISIBLE_FRAMES]
        self.without: dict[int, list[set[int]]] = {}
        self.later = [set(c.ids) for c in trajectory.collisions if c.frame >= VISIBLE_FRAMES]

    def all(self, phrase: str) -> list[int]:
        words = [word for word in phrase.removesuffix("s").split() if word != "object"]
        return [id for id, name in self.names.items() if set(words) <= set(name)]

    def one(self, phrase: str) -> int:
        (id,) = self.all(phrase)
        return id

    def moves(self, id: int, motion: str, at: dict[str, str | None]) -> bool:
        if at["who"]:
            frames = [self.passages[at["verb"].removesuffix("s")][self.one(at["who"])]]
        elif at["edge"]:
            frames = [0 if at["edge"] == "begins" else 127]
        else:
            moved = any(self.inside[id][f] and self.speed[id][f] > 0.02 for f in range(128))
            return moved == (motion == "moving")
        return self.inside[id][frames[0]] and (self.speed[id][frames[0]] > 0.02) == (motion == "moving")

    def during(self, frame: int, when: dict[str, str | None]) -> bool:
        if not when["who"]:
            return True
        limit = self.passages[when["verb"].removesuffix("s")][self.one(when["who"])]
        return frame < limit if when["order"] == "before" else frame > limit

    def subject(self, text: str) -> int:
        """The object that a question asks an attribute of."""
        if m := re.fullmatch(r"(?:(\w+) )?object to collide with the (.+)", text):
            me = self.one(m[2])
            partners = [pair - {me} for _, pair in sorted(self.hits, key=lambda hit: hit[0]) if me in pair]
            assert m[1] or len(partners) == 1
            (partner,) = partners[{None: 0, "first": 0, "second": 1, "last": -1}[m[1]]]
            return partner
        if m := re.fullmatch(r"(\w+) object (?:that|to) (enter|exit)s? the scene", text):
            ids = sorted(self.passages[m[2]], key=lambda id: self.passages[m[2]][id])
            return ids[{"first": 0, "second": 1, "last": -1}[m[1]]]
        m = re.fullmatch(f"{self.MOTION} (?P<what>.+?){self.MOMENT}", text)
        m = m or re.fullmatch(f"(?P<what>.+?) that is {self.MOTION}{self.MOMENT}", text)
        assert m, text
        assert len(self.all(m["what"])) > 1, f"answerable from one frame: {text}"
        (id,) = [id for id in self.all(m["what"]) if self.moves(id, m["motion"], m.groupdict())]
        return id

    def answer(self, text: str) -> str:
        text = text.removesuffix("?")
        if m := re.fullmatch(r"What (?:is the )?(color|material|shape) (?:is|of) the (.+)", text):
            column = ["color", "material", "shape"].index(m[1])
            assert not set(re.findall(r"\w+", m[2].split("with the")[0].split(" when ")[0])) & set(ATTRIBUTES[m[1]])
            return self.names[self.subject(m[2])][column]
        number = self.number(text)
        if text.startswith("How many"):
            return str(number)
        return "yes" if number else "no"

    def number(self, text: str) -> int:
        if m := re.fullmatch(f"(?:How many collisions|Are there any collisions that) happen{self.WHEN}", text):
            return sum(self.during(frame, m.groupdict()) for frame, _ in self.hits)
        m = re.fullmatch(
            f"(?:How many|Are there any) (?P<what>.+?)(?: that)? (?P<passage>enter|exit) the scene{self.WHEN}", text
        )
        if m:
            frames = self.passages[m["passage"]]
            return sum(id in frames and self.during(frames[id], m.groupdict()) for id in self.all(m["what"]))
        m = re.fullmatch(f"How many (?P<what>.+?) are {self.MOTION}{self.MOMENT}", text)
        m = m or re.fullmatch(f"How many {self.MOTION} (?P<what>.+?) are there{self.MOMENT}", text)
        m = m or re.fullmatch(f"Are there any {self.MOTION} (?P<what>.+?){self.MOMENT}", text)
        assert m, text
        return sum(self.moves(id, m["motion"], m.groupdict()) for id in self.all(m["what"]))

    def pair(self, text: str) -> set[int]:
        m = re.fullmatch(r"The (.+) collides with the (.+)", text) or re.fullmatch(
            r"The (.+) and the (.+) collide", text
        )
        m = m or re.fullmatch(r"the collision between the (.+) and the (.+)", text)
        m = m or re.fullmatch(r"the (.+)'s colliding with the (.+)", text)
        assert m, text
        return {self.one(m[1]), self.one(m[2])}

    def history(self, id: int) -> list[tuple[int, int, str, frozenset[int]]]:
        """What happens to an object: (frame, rank within a frame, kind, objects)."""
        found = [(frame, 1, "hit", frozenset(pair)) for frame, pair in self.hits if id in pair]
        for rank, kind in ((0, "enter"), (2, "exit")):
            if id in self.passages[kind]:
                found.append((self.passages[kind][id], rank, kind, frozenset({id})))
        return sorted(found, key=lambda event: (event[0], event[1], sorted(event[3])))

    def causes(self, event: tuple[int, int, str, frozenset[int]]) -> set[tuple[int, int, str, frozenset[int]]]:
        found = set()
        for id in event[3]:
            history = self.history(id)
            if (place := history.index(event)) > 0:
                found |= {history[place - 1]} | self.causes(history[place - 1])
        return found

    def responsible(self, question: str, choice: str) -> bool:
        effect = re.fullmatch(r"Which of the following is (?:not )?responsible for (.+)\?", question)[1]
        if m := re.fullmatch(r"the (.+)'s exit(?:ing the scene)?", effect):
            event = self.history(self.one(m[1]))[-1]
            assert event[2] == "exit"
        else:
            (event,) = [e for e in self.history(min(self.pair(effect))) if e[3] == self.pair(effect)]
        causes = self.causes(event)
        if m := re.fullmatch(r"the presence of the (.+)", choice):
            assert self.one(m[1]) not in event[3]
            return any(self.one(m[1]) in cause[3] for cause in causes)
        if m := re.fullmatch(r"the (.+)'s (?:entrance|entering the scene)", choice):
            assert self.one(m[1]) not in event[3]
            return any((kind, ids) == ("enter", {self.one(m[1])}) for _, _, kind, ids in causes)
        return any((kind, ids) == ("hit", self.pair(choice)) for _, _, kind, ids in causes)

    def pairs_without(self, removed: int) -> list[set[int]]:
        """The pairs of which the camera sees the collision when an object is not there."""
        without = simulate(Scene(tuple(item for item in self.scene.objects if item.id != removed)))
        seen = {id: without.inside[:, k] for k, id in enumerate(without.ids)}
        return [
            set(c.ids)
            for c in without.collisions
            if any(seen[id][c.frame] for id in c.ids) and np.all([seen[id][c.frame :] for id in c.ids], axis=0).any()
        ]

    def judge(self, question: str, choice: str) -> bool:
        """Whether a choice is right."""
        wanted = " not " not in question
        if "responsible" in question:
            return self.responsible(question, choice) == wanted
        if "next" in question:
            return (self.pair(choice) in self.later) == wanted
        removed = self.one(re.search(r"(?:without the|if the) (.+?)(?: is removed|,|\?)", question.lower())[1])
        if removed not in self.without:
            self.without[removed] = self.pairs_without(removed)
        return (self.pair(choice) in self.without[removed]) == wanted


def check(scene: Scene, trajectory: Trajectory, pool: list[Candidate]) -> None:
    direct = Direct(scene, trajectory)
    for candidate in pool:
        encode_question(candidate.text)
        if candidate.answer is not None:
            assert candidate.answer in ANSWERS_OF[candidate.subtype]
            assert direct.answer(candidate.text) == candidate.answer, candidate.text
        for option in candidate.options:
            encode_question(candidate.text, option.text)
            right = direct.judge(candidate.text, option.text)
            assert ("correct" if right else "wrong") == option.answer, (candidate.text, option.text)


@pytest.mark.parametrize("index", range(POOLS))
def test_answers_are_what_the_texts_ask_for(index: int) -> None:
    scene, trajectory = random_scenes()[index]
    assert {candidate.subtype for candidate in pools()[index]} >= {*ANSWERS_OF, "explanatory", "counterfactual"}
    check(scene, trajectory, pools()[index])


@pytest.mark.slow
def test_answers_are_what_the_texts_ask_for_in_500_scenes() -> None:
    rng = np.random.default_rng(1)
    for seed in range(500):
        scene = sample_scene(rng)
        check(scene, simulate(scene), scene_pool(scene, seed))
