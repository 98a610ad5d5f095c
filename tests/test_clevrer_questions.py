"""CLEVRER questions: words, programs, answers, pools and their balance."""

import json
import random
import re
from collections import Counter
from dataclasses import replace
from functools import lru_cache
from itertools import product

import numpy as np
import pytest
from clevrer_scenes import chain, random_scenes

from envs.clevrer import Event, Scene, Trajectory, sample_scene, simulate
from envs.clevrer.annotation import annotate, read_trajectory
from envs.clevrer.physics import VISIBLE_FRAMES
from envs.clevrer.questions import (
    ANSWER_VOCABULARY,
    QUESTION_VOCABULARY,
    Candidate,
    Facts,
    Object,
    Option,
    ProgramError,
    balance,
    encode_answer,
    encode_question,
    execute,
    judge,
    scene_pool,
    templates,
    tokenize,
    trace,
)
from envs.clevrer.questions.balance import ALIKE_SHARE, CHOICES, MAX_IMBALANCE, QUESTIONS
from envs.clevrer.questions.facts import shown_collisions
from envs.clevrer.questions.generate import PERTURBATIONS, counterfactual_worlds, generate, resimulation
from envs.clevrer.questions.programs import ALIASES, ORDERS, Description
from envs.clevrer.questions.vocabulary import ANSWERS_OF, ATTRIBUTES, CHOICE_WORDS, QUESTION_WORDS

DEFAULT_SCENES = 6


@lru_cache(maxsize=1)
def pools() -> dict[int, list[Candidate]]:
    return {index: scene_pool(random_scenes()[index][0], seed=index) for index in range(DEFAULT_SCENES)}


# Words


def test_vocabulary_is_numbered_as_aloe_numbers_it() -> None:
    assert len(QUESTION_VOCABULARY) == 82 and len(ANSWER_VOCABULARY) == 22
    numbers = {"PAD": 0, "after": 1, "cube": 16, "cube's": 17, "cube,": 18, "cubes": 19, "without": 80, "yellow": 81}
    assert {word: QUESTION_VOCABULARY[word] for word in numbers} == numbers
    assert [ANSWER_VOCABULARY[answer] for answer in ("PAD", "0", "5", "blue", "no", "yes")] == [0, 1, 6, 7, 15, 21]
    assert encode_answer("yes") == 21


def test_encoding_pads_the_question_and_the_choice_apart() -> None:
    assert tokenize("If the red cube is removed, what will happen?")[-5:] == [
        "is",
        "removed,",
        "what",
        "will",
        "happen",
    ]
    alone = encode_question("What will happen next?")
    both = encode_question("What will happen next?", "The cube and the sphere collide")
    assert alone.shape == both.shape == (32,)
    assert np.count_nonzero(alone) == 4 and np.array_equal(alone[:20], both[:20])
    assert np.count_nonzero(both[20:26]) == 6 and not both[26:].any()


@pytest.mark.parametrize(
    ("text", "message"),
    [("What will the red ball do?", r"unknown words \['ball', 'do'\]"), ("red " * 33, "33 words .* at most 32")],
)
def test_encoding_refuses_what_does_not_fit(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_question(text)


def test_encoding_refuses_an_unknown_answer() -> None:
    with pytest.raises(ValueError, match="unknown answer 'orange'"):
        encode_answer("orange")


def every_phrase() -> tuple[list[templates.Phrase], list[templates.Phrase]]:
    """All sentences about the longest descriptions: questions and choices."""
    item = Description("yellow", "rubber", "cylinder")
    whens = [
        templates.ALL_EVENTS,
        *(templates.relation(o, v, item) for o in ("before", "after") for v in ("enter", "exit")),
    ]
    moments = [templates.WHOLE_VIDEO, templates.VIDEO_BEGINS, templates.VIDEO_ENDS, templates.moment("exit", item)]
    questions = [templates.Phrase(text, templates.PREDICTIVE_PROGRAM) for text in templates.PREDICTIVE]
    queried = [templates.partner(item, order) for order in (None, *ORDERS)]
    for verb, order in product(templates.PASSAGES, ORDERS):
        queried += templates.passer(verb, order)
    for motion, moment in product(templates.MOTIONS, moments):
        questions += [*templates.count_motion(item, motion, moment), templates.exist_motion(item, motion, moment)]
        queried += templates.mover(item, motion, moment)
    for when in whens:
        questions += [templates.count_collisions(when), templates.exist_collisions(when)]
        for verb in templates.PASSAGES:
            questions += [templates.count_passages(item, verb, when), templates.exist_passages(item, verb, when)]
    for attribute, phrase in product(ATTRIBUTES, queried):
        questions += templates.query(attribute, phrase)
    for negated in (False, True):
        questions += templates.counterfactual(item, negated)
        for effect in (*templates.collision_noun(item, item), *templates.exit_noun(item)):
            questions.append(templates.explanatory(effect, negated))
    choices = [
        *templates.collision_noun(item, item),
        *templates.entrance_noun(item),
        templates.presence_noun(item),
        *templates.collision_sentence(item, item),
    ]
    return questions, choices


def test_every_sentence_fits_with_the_longest_descriptions() -> None:
    questions, choices = every_phrase()
    assert len({question.text for question in questions}) == len(questions) > 200
    for phrases, length in ((questions, QUESTION_WORDS), (choices, CHOICE_WORDS)):
        assert max(len(tokenize(phrase.text)) for phrase in phrases) == length
        assert {word for phrase in phrases for word in tokenize(phrase.text)} <= QUESTION_VOCABULARY.keys()


def test_template_leaves_out_descriptions() -> None:
    assert templates.template("If the red cube is removed, which event will not happen?") == (
        "if the object is removed, which event will not happen"
    )
    assert templates.template("How many metal cubes enter the scene?") == "how many objects enter the scene"
    assert templates.template("the gray rubber sphere's entrance") == "the object's entrance"
    assert templates.template("Without the cube, what will happen?") == "without the object, what will happen"


# Programs


def facts() -> Facts:
    """0 red metal cube enters at 5, hits 1 at 20; 1 blue rubber cube hits 2 at 30; 2 gray metal sphere leaves at 50."""
    described = ("red metal cube", "blue rubber cube", "gray metal sphere")
    visible = np.ones((3, 128), bool)
    visible[0, :5], visible[2, 50:] = False, False
    moving = np.zeros((3, 128), bool)
    moving[0, :25], moving[1, 20:40], moving[2, 30:] = True, True, True
    return Facts(
        tuple(Object(id, dict(zip(ATTRIBUTES, words.split(), strict=True))) for id, words in enumerate(described)),
        (
            Event("in", frozenset({0}), 5),
            Event("collision", frozenset({0, 1}), 20),
            Event("collision", frozenset({1, 2}), 30),
            Event("out", frozenset({2}), 50),
        ),
        dict(enumerate(visible)),
        dict(enumerate(moving)),
        (Event("collision", frozenset({0, 1}), 150),),
        {0: frozenset(), 2: frozenset({frozenset({0, 1})})},
    )


RED, GRAY = "objects red filter_color unique", "objects gray filter_color unique"


@pytest.mark.parametrize(
    ("program", "answer"),
    [
        ("objects count", "3"),
        ("objects metal filter_material cube filter_shape unique query_color", "red"),
        ("objects start get_frame filter_moving count", "0"),  # the red cube moves, but out of sight
        ("objects end get_frame filter_stationary count", "2"),
        ("objects null filter_stationary count", "0"),
        (f"objects events {GRAY} filter_out unique get_frame filter_moving exist", "no"),
        ("events objects filter_collision count", "2"),
        (f"events events {RED} filter_in unique filter_after objects filter_out count", "1"),
        (f"events {RED} filter_in events {GRAY} filter_out unique filter_before count", "1"),
        (f"events events {RED} filter_in unique filter_before objects filter_collision exist", "no"),
        (f"events objects filter_collision last filter_order {GRAY} get_col_partner query_color", "blue"),
        ("events objects filter_in first filter_order get_object query_shape", "cube"),
        (f"{RED} events events {GRAY} filter_out unique filter_ancestor belong_to", "yes"),
        (f"{RED} events events {RED} filter_in unique filter_ancestor belong_to negate", "yes"),
        (f"all_events {RED} filter_collision {GRAY} filter_collision unique unseen_events belong_to", "no"),
        ("all_events count", "3"),
        (f"all_events {GRAY} get_counterfact count", "1"),
        (f"all_events {RED} get_counterfact exist", "no"),
    ],
)
def test_programs_have_their_answers(program: str, answer: str) -> None:
    assert execute(facts(), program.split()) == answer


def test_both_spellings_are_read() -> None:
    for spelling, program in {
        "objects events filter_end query_frame filter_resting count": "objects end get_frame filter_stationary count",
        "objects events filter_start query_frame filter_moving count": "objects start get_frame filter_moving count",
        f"all_events {GRAY} filter_counterfact count": f"all_events {GRAY} get_counterfact count",
        "events objects filter_out unique query_object query_color": (
            "events objects filter_out unique get_object query_color"
        ),
        f"events {RED} filter_collision unique {RED} query_collision_partner query_color": (
            f"events {RED} filter_collision unique {RED} get_col_partner query_color"
        ),
    }.items():
        assert execute(facts(), spelling.split()) == execute(facts(), program.split())
    assert not set(ALIASES) & {token for phrase in every_phrase()[0] for token in phrase.program}


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("objects metal filter_material unique", r"token 3, unique: takes exactly one item, got 2"),
        ("objects unique query_color count", "token 1, unique"),
        ("count", r"token 0, count: takes 1 arguments, but the stack holds fewer"),
        ("events metal filter_material", r"filter_material: argument 1 must be objects, got events"),
        ("objects metal filter_color", "'metal' is not a color"),
        ("objects mauve filter_color", r"token 1: unknown operator or value 'mauve'"),
        ("objects red filter_moving", "'red' is not a frame"),
        ("objects count negate", "takes yes or no, got '3'"),
        ("objects events", "leaves 2 values"),
        ("events objects filter_in second filter_order", "there is no second of 1 events"),
        ("events objects filter_in first filter_order", "ends with an event instead of an answer"),
        ("all_events unique", "got 3"),
        (f"all_events {RED} filter_collision {GRAY} filter_collision unique get_frame", "has no frame"),
        (f"events objects filter_in unique {RED} get_col_partner", "takes a collision of object 0"),
        ("all_events objects blue filter_color unique get_counterfact", "without object 1 is not known"),
    ],
)
def test_programs_without_an_answer_say_why(program: str, message: str) -> None:
    with pytest.raises(ProgramError, match=message):
        execute(facts(), program.split())


def test_a_choice_is_judged_by_yes_or_no() -> None:
    choice, question = RED.split(), f"events events {GRAY} filter_out unique filter_ancestor belong_to".split()
    assert judge(facts(), choice, question) == "correct"
    assert judge(facts(), choice, [*question, "negate"]) == "wrong"
    with pytest.raises(ProgramError, match="must come out as yes or no, got 'red'"):
        judge(facts(), choice, ["query_color"])


def test_what_a_released_annotation_does_not_tell_is_refused() -> None:
    trajectory = read_trajectory(json.loads(json.dumps(annotate(simulate(chain(), frames=VISIBLE_FRAMES)))))
    known = Facts.of(trajectory)
    assert execute(known, ["events", "objects", "filter_collision", "count"]) == "2"
    with pytest.raises(ProgramError, match="after this video is not known"):
        execute(known, ["unseen_events", "count"])


def test_trace_shows_what_each_token_leaves_behind() -> None:
    steps = trace(facts(), ["objects", "cube", "filter_shape", "count"])
    assert [step.token for step in steps] == ["objects", "cube", "filter_shape", "count"]
    assert [item.id for item in steps[2].value] == [0, 1] and steps[3].value == "2"


def test_collisions_outside_the_picture_do_not_count() -> None:
    trajectory = simulate(chain())
    first = trajectory.collisions[0]
    columns = [trajectory.ids.index(id) for id in first.ids]
    inside = trajectory.inside.copy()
    inside[: first.frame + 4, columns[0]] = False
    later = shown_collisions(replace(trajectory, inside=inside))
    assert [c.ids for c in later] == [c.ids for c in trajectory.collisions]
    assert min(c.frame for c in later if c.ids == first.ids) == first.frame + 4
    inside[: first.frame + 4, columns[1]] = False
    assert first.ids not in [c.ids for c in shown_collisions(replace(trajectory, inside=inside))]


# Answers, found a second way: from what a question says, and not from its program


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

    def judge(self, question: str, choice: str) -> bool:
        """Whether a choice is right."""
        wanted = " not " not in question
        if "responsible" in question:
            return self.responsible(question, choice) == wanted
        if "next" in question:
            return (self.pair(choice) in self.later) == wanted
        removed = self.one(re.search(r"(?:without the|if the) (.+?)(?: is removed|,|\?)", question.lower())[1])
        without = simulate(Scene(tuple(item for item in self.scene.objects if item.id != removed)))
        seen = {id: without.inside[:, k] for k, id in enumerate(without.ids)}
        pairs = [
            set(c.ids)
            for c in without.collisions
            if any(seen[id][c.frame] for id in c.ids) and np.all([seen[id][c.frame :] for id in c.ids], axis=0).any()
        ]
        return (self.pair(choice) in pairs) == wanted


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


@pytest.mark.parametrize("index", range(DEFAULT_SCENES))
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


# Pools


def test_a_pool_depends_on_its_scene_and_seed_alone() -> None:
    scene = random_scenes()[0][0]
    again = [Candidate.from_json(json.loads(json.dumps(candidate.to_json()))) for candidate in scene_pool(scene, 0)]
    assert again == pools()[0]
    assert scene_pool(scene, 1) != again


def test_counterfactual_choices_survive_perturbations_of_the_start() -> None:
    asked = 0
    for index, (scene, trajectory) in enumerate(random_scenes()[:DEFAULT_SCENES]):
        known = Facts.of(trajectory)
        worlds = counterfactual_worlds(known, resimulation(scene, index))
        assert all(len(versions) == 1 + PERTURBATIONS for versions in worlds.values())
        for candidate in pools()[index]:
            if candidate.subtype == "counterfactual":
                for number in range(1 + PERTURBATIONS):
                    world = replace(known, without={id: versions[number] for id, versions in worlds.items()})
                    for option in candidate.options:
                        assert judge(world, option.program, candidate.program) == option.answer
                        asked += 1
    assert asked > 0


@pytest.mark.parametrize("flips", [False, True])
def test_a_flipping_pair_is_not_asked_about(flips: bool) -> None:
    known = Facts.of(simulate(chain()))

    def resimulate(removed: int, number: int) -> Trajectory:
        course = simulate(chain(), {removed: 0})
        return replace(course, collisions=()) if flips and number == 3 else course

    worlds = counterfactual_worlds(known, resimulate)
    assert sorted(worlds) == [0, 1, 2], "only objects that collide are removed"
    assert worlds[2][0] == {frozenset({0, 1})}
    pool = [c for c in generate(known, np.random.default_rng(0), worlds) if c.subtype == "counterfactual"]
    happening = [o for c in pool for o in c.options if (o.answer == "correct") != (" not " in c.text)]
    assert bool(happening) != flips


def test_the_window_decides_whether_hidden_frames_count() -> None:
    differ = 0
    for index, (scene, trajectory) in enumerate(random_scenes()[:DEFAULT_SCENES]):
        known, resimulate = Facts.of(trajectory), resimulation(scene, index)
        whole = counterfactual_worlds(known, resimulate, perturbations=0)
        shown = counterfactual_worlds(known, resimulate, window=VISIBLE_FRAMES, perturbations=0)
        assert all(shown[id][0] <= whole[id][0] for id in whole)
        differ += sum(shown[id][0] != whole[id][0] for id in whole)
    assert differ > 0


# Balance


@lru_cache(maxsize=1)
def made_up_pools() -> dict[int, list[Candidate]]:
    """Pools that supply every answer, but not evenly."""
    rng = random.Random(0)
    found: dict[int, list[Candidate]] = {}
    for scene in range(100):
        pool = []
        for subtype, answers in ANSWERS_OF.items():
            for number in range(30):
                answer = answers[min(int(rng.expovariate(1.0)), len(answers) - 1)]
                group = f"{subtype} {rng.randrange(3)}"
                pool.append(Candidate(subtype, f"{subtype} {number}", [subtype, str(number)], answer, group))
        for type, number in product(CHOICES, range(4)):
            options = []
            for choice in range(7):
                answer = "correct" if rng.random() < 0.2 else "wrong"
                groups = (type, f"{type} {number % 2} {choice % 2}")
                options.append(Option(f"choice {choice}", [str(choice)], answer, groups))
            pool.append(Candidate(type, f"{type} {number}", [type, str(number)], options=tuple(options)))
        found[scene] = pool
    return found


@lru_cache(maxsize=1)
def picked() -> dict[int, list[Candidate]]:
    return balance(made_up_pools(), seed=3)


def test_answers_of_each_subtype_are_equally_frequent_unless_the_scenes_run_out() -> None:
    def count(pools: dict[int, list[Candidate]], subtype: str) -> Counter[str | None]:
        return Counter(q.answer for questions in pools.values() for q in questions if q.subtype == subtype)

    for subtype, answers in ANSWERS_OF.items():
        supplied, asked = count(made_up_pools(), subtype), count(picked(), subtype)
        most = max(asked.values())
        plenty = [answer for answer in answers if supplied[answer] > 2 * most]
        assert len(plenty) >= 2 and min(asked[answer] for answer in plenty) >= most - 2, (subtype, asked)
        assert all(asked[a] >= 0.5 * min(supplied[a], most) for a in answers), (subtype, asked, supplied)


def test_correct_and_wrong_choices_are_balanced_within_types_and_templates() -> None:
    difference: Counter[str] = Counter()
    numbers: Counter[tuple[str, int]] = Counter()
    for question in (q for questions in picked().values() for q in questions if q.options):
        correct = sum(option.answer == "correct" for option in question.options)
        numbers[question.subtype, correct] += 1
        assert len(question.options) in CHOICES[question.subtype].sizes
        for option in question.options:
            difference.update(dict.fromkeys(option.groups, 1 if option.answer == "correct" else -1))
    assert max(map(abs, difference.values())) <= MAX_IMBALANCE
    assert {correct for type, correct in numbers if type == "predictive"} == {1}
    assert {correct for type, correct in numbers if type == "counterfactual"} == {1, 2, 3}
    assert {correct for type, correct in numbers if type == "explanatory"} >= {0, 1, 2, 3}
    explanatory = [q.options for questions in picked().values() for q in questions if q.subtype == "explanatory"]
    alike = sum(len({option.answer for option in options}) == 1 for options in explanatory)
    assert 0 < alike <= ALIKE_SHARE * len(explanatory)


def test_balance_does_not_depend_on_who_made_the_pools() -> None:
    made = made_up_pools()
    shuffled = {scene: made[scene] for scene in random.Random(5).sample(sorted(made), len(made))}
    assert balance(shuffled, seed=3) == picked()
    assert balance(made, seed=4) != picked()


def test_questions_are_in_the_official_order_and_never_repeated() -> None:
    for questions in balance(pools(), seed=0).values():
        types = [question.subtype if question.options else "descriptive" for question in questions]
        order = ["descriptive", *CHOICES]
        assert types == sorted(types, key=order.index)
        assert len({tuple(question.program) for question in questions}) == len(questions)
        asked = Counter(question.subtype for question in questions)
        assert all(asked[subtype] <= number for subtype, number in QUESTIONS.items())
        assert len(questions) >= 11


def test_a_scene_without_candidates_gets_no_questions() -> None:
    assert balance({7: []}, seed=0) == {7: []}
