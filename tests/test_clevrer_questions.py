"""CLEVRER questions: words, sentences and programs."""

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from clevrer_scenes import chain

from envs.clevrer import Event, simulate
from envs.clevrer.annotation import annotate, read_trajectory
from envs.clevrer.physics import VISIBLE_FRAMES
from envs.clevrer.questions import (
    ANSWER_VOCABULARY,
    QUESTION_VOCABULARY,
    Facts,
    Object,
    ProgramError,
    encode_answer,
    encode_question,
    execute,
    judge,
    templates,
    tokenize,
    trace,
)
from envs.clevrer.questions.facts import shown_collisions
from envs.clevrer.questions.programs import ALIASES, ORDERS, Description
from envs.clevrer.questions.vocabulary import ATTRIBUTES, CHOICE_WORDS, QUESTION_WORDS

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
    with pytest.raises(
        ValueError, match=r"unknown answer 'orange'; expected one of \['0', .*, '5', 'blue', .*, 'yes'\]"
    ):
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
