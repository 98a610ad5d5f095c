"""Pools of CLEVRER questions, and their balance."""

import json
import random
from collections import Counter
from dataclasses import replace
from functools import lru_cache
from itertools import product

import numpy as np
import pytest
from clevrer_scenes import POOLS, chain, pools, random_scenes

from envs.clevrer import Trajectory, simulate
from envs.clevrer.physics import VISIBLE_FRAMES
from envs.clevrer.questions import Candidate, Facts, Option, balance, judge, scene_pool
from envs.clevrer.questions.balance import ALIKE_SHARE, CHOICES, MAX_IMBALANCE, QUESTIONS
from envs.clevrer.questions.generate import PERTURBATIONS, counterfactual_worlds, generate, resimulation
from envs.clevrer.questions.vocabulary import ANSWERS_OF

# Pools


def test_a_pool_depends_on_its_scene_and_seed_alone() -> None:
    scene = random_scenes()[0][0]
    again = [Candidate.from_json(json.loads(json.dumps(candidate.to_json()))) for candidate in scene_pool(scene, 0)]
    assert again == pools()[0]
    assert scene_pool(scene, 1) != again


def test_counterfactual_choices_survive_perturbations_of_the_start() -> None:
    asked = 0
    for index, (scene, trajectory) in enumerate(random_scenes()[:POOLS]):
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
    for index, (scene, trajectory) in enumerate(random_scenes()[:POOLS]):
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
                pool.append(Candidate(subtype, f"{subtype} {number}", [subtype, str(number)], answer))
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


def test_words_do_not_tell_the_answers() -> None:
    rng = random.Random(0)
    supplied: dict[int, list[Candidate]] = {}
    for scene in range(200):
        colours = [rng.choice(("red", "blue")) for _ in range(12)]
        answers = ["yes" if (colour == "red") == (rng.random() < 0.8) else "no" for colour in colours]
        supplied[scene] = [
            Candidate("exist", f"Are there any moving {colour} cubes?", [str(number)], answer)
            for number, (colour, answer) in enumerate(zip(colours, answers, strict=True))
        ]
    asked = Counter((q.text, q.answer) for questions in balance(supplied, seed=0).values() for q in questions)
    assert sum(asked.values()) == 200 * QUESTIONS["exist"] and len(asked) == 4
    for text in {text for text, _ in asked}:
        assert abs(asked[text, "yes"] / (asked[text, "yes"] + asked[text, "no"]) - 0.5) < 0.05


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
