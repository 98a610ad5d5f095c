"""ALOE with grounding: its targets from annotations, what it reads, and that it learns."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clevrer_scenes import write_asked_scenes
from perfect_predictor import true_slots
from torch import Tensor

from cjepa_agent.checkpoint import Checkpoint
from cjepa_agent.data.video_slots import VideoSlots
from cjepa_agent.encoders.autoencoder import SlotAutoencoder
from cjepa_agent.encoders.kinds import EncoderConfig
from cjepa_agent.evaluation.vqa_examples import asked_about
from cjepa_agent.reading.slot_reader import StateReader
from cjepa_agent.training.loop import Run, TrainerConfig
from cjepa_agent.training.vqa_stage import VQAStage, VQATrainingConfig
from cjepa_agent.vqa.answerer import losses, predict
from cjepa_agent.vqa.causal_past import causal_past, nodes
from cjepa_agent.vqa.checkpoint import find, load, save
from cjepa_agent.vqa.data import NOTHING, Batch, Reading, SlotQuestions
from cjepa_agent.vqa.grounded import GroundedALOE, GroundedALOEConfig
from cjepa_agent.vqa.grounding import (
    CONCEPTS,
    NAMES,
    NO_MOMENT,
    Annotations,
    Grounding,
    Referents,
    grounding_losses,
    holding,
    mentions,
    referent_losses,
)
from envs.clevrer.dataset import Dataset
from envs.clevrer.events import CausalGraph, Event
from envs.clevrer.questions.vocabulary import QUESTION_WORDS, encode_question
from envs.clevrer.render import CLEVRERRenderer

TINY = GroundedALOEConfig(layers=3, heads=2, width=32, mlp=64, head=32, frames=32, tubelet=4, perception=16)
SCENES = [0, 1, 2, 10000, 10001]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three training and two validation scenes with slots of their true states."""
    folder = tmp_path_factory.mktemp("clevrer")
    write_asked_scenes(folder)
    videos = [true_slots(Dataset(folder).trajectory(scene)) for scene in SCENES]
    VideoSlots.write(folder / "slots", {"encoder": "state"}, SCENES, (128, 7, 128), videos)
    SlotAutoencoder(EncoderConfig(kind="clevrer_state", n_slots=7)).save(folder / "slots")
    return folder


def stage(data: Path, config: GroundedALOEConfig = TINY, questions: int = 4) -> VQAStage:
    settings = VQATrainingConfig(questions=questions)
    return VQAStage(Dataset(data), VideoSlots(data / "slots"), config, settings, 0, {})


def straight(videos: int = 1) -> Tensor:
    return torch.arange(7).expand(videos, -1)


def grounding_of(data: Path, *readings: Reading, order: Tensor | None = None) -> Grounding:
    annotations = Annotations(Dataset(data), VideoSlots(data / "slots"), StateReader())
    return annotations.of(readings, 4, straight(len(readings)) if order is None else order)


# ------------------------------------------------------------------------------------------------ targets


def test_targets_are_what_the_annotation_tells(data: Path) -> None:
    reading = Reading(1, NOTHING, range(3, 3 + 31 * 4 + 1, 4))  # 8 tubelets of 16 frames, from frame 3 on
    found = grounding_of(data, reading)
    trajectory, facts = Dataset(data).trajectory(1), Dataset(data).facts(1)
    assert found.told[0].tolist() == [True] * 7 + [False]  # the last would end at frame 131
    for item in facts.objects:
        said = {NAMES[i] for i in found.names[0, item.id].nonzero().flatten().tolist()}
        assert said == set(item.attributes.values())
        for tubelet in range(7):
            frame = 3 + 16 * tubelet + 8
            concepts = {CONCEPTS[i] for i in found.concepts[0, tubelet, item.id].nonzero().flatten().tolist()}
            expected = said | {"in view"} if facts.visible[item.id][frame] else set()
            if expected and np.linalg.norm(trajectory.velocity[frame, item.id, :2]) > 0.02:
                expected = expected | {"moving"}
            assert concepts == expected
    # Those that the camera sees both of, whose frames need no correction.
    expected_pairs = {
        ((event.frame - 3) // 16, *event.ids)
        for event in trajectory.collisions
        if event.frame < 128 and trajectory.inside[event.frame, list(event.ids)].all()
    }
    assert expected_pairs, "the scene must have a collision"
    pairs = {tuple(place) for place in found.collisions[0].nonzero().tolist()}
    assert pairs == {(t, *p) for t, a, b in expected_pairs if 0 <= t < 8 for p in ((a, b), (b, a))}


def test_targets_follow_the_slots(data: Path) -> None:
    reading = Reading(0, NOTHING, range(0, 128, 4))
    plain, order = grounding_of(data, reading), torch.tensor([[3, 0, 6, 2, 1, 5, 4]])
    moved = grounding_of(data, reading, order=order)
    for place, slot in enumerate(order[0].tolist()):
        assert torch.equal(moved.concepts[0, :, place], plain.concepts[0, :, slot])
        assert torch.equal(moved.names[0, place], plain.names[0, slot])
        for other_place, other in enumerate(order[0].tolist()):
            assert torch.equal(moved.collisions[0, :, place, other_place], plain.collisions[0, :, slot, other])


def test_the_causal_past_answers_explanatory_questions(data: Path) -> None:
    file = Dataset(data).questions("train")
    only = [
        {**scene, "questions": [q for q in scene["questions"] if q["question_type"] == "explanatory"]}
        for scene in file.scenes
    ]  # fmt: skip
    asked = SlotQuestions(replace(file, scenes=only), VideoSlots(data / "slots"), TINY.frames)
    batch = asked.batch(np.arange(len(asked)))
    order = torch.rand(len(batch.slots), 7, generator=torch.Generator().manual_seed(0)).argsort(1)
    annotations = Annotations(Dataset(data), VideoSlots(data / "slots"), StateReader())
    every_frame = [Reading(reading.scene, NOTHING, range(128)) for reading in batch.readings]
    truth = annotations.of(every_frame, 1, order)
    led, node = (
        causal_past(truth.collisions),
        {pair: n for n, pair in enumerate(zip(*(ends.tolist() for ends in nodes(7)), strict=True))},
    )
    named, _ = mentions(batch.words, truth.names[batch.owner])
    effect, cause = named[:, :QUESTION_WORDS].any(1), named[:, QUESTION_WORDS:].any(1)
    told = [
        float(led[owner, node[event], node[before]])
        for owner, event, before in zip(batch.owner, _ends(effect), _ends(cause), strict=True)
    ]
    assert told == holding(batch).tolist()
    assert 0 < sum(told) < len(told)


def test_the_causal_past_is_that_of_the_graph() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        pairs = [tuple(sorted(rng.choice(5, 2, replace=False).tolist())) for _ in range(rng.integers(1, 9))]
        collisions = torch.zeros(1, len(pairs), 5, 5)
        for step, (one, other) in enumerate(pairs):
            collisions[0, step, [one, other], [other, one]] = 1
        led, node = causal_past(collisions)[0], list(zip(*(ends.tolist() for ends in nodes(5)), strict=True))
        graph = CausalGraph.of([Event("collision", frozenset(pair), step) for step, pair in enumerate(pairs)])
        expected = {
            (pair, cause)
            for place, pair in enumerate(pairs)
            for before in graph.ancestors(place)
            for cause in (pairs[before], *((end, end) for end in pairs[before]))
        }
        found = {(node[row], node[column]) for row, column in led.nonzero().tolist() if row >= 5}
        assert found == expected


def test_an_unsure_link_makes_what_follows_unsure() -> None:
    collisions = torch.zeros(1, 3, 4, 4)
    for step, (one, other, sure) in enumerate([(0, 1, 0.9), (1, 2, 0.4), (2, 3, 0.8)]):
        collisions[0, step, [one, other], [other, one]] = sure
    led = causal_past(collisions)[0]
    assert led[3, 0] == pytest.approx(0.9 * 0.4 * 0.8) and led[3, 2] == pytest.approx(0.8) and led[0, 3] == 0


def _ends(named: Tensor) -> list[tuple[int, int]]:
    """Both slots that are named, twice the same if it is one."""
    return [(slots[0], slots[-1]) for slots in (row.nonzero().flatten().tolist() for row in named)]


def test_annotations_tell_nothing_of_predictions(data: Path) -> None:
    later, without = Reading(0, NOTHING, range(32, 160, 4)), Reading(0, 2, range(0, 180, 5)[:32])
    found = grounding_of(data, later, without)
    assert found.told[0].tolist() == [True] * 6 + [False] * 2 and not found.told[1].any()
    assert not found.names[1, 2].any() and found.names[0, 2].any()
    assert torch.equal(found.names[0, :2], found.names[1, :2])


def test_words_name_the_objects_that_have_all_names_of_a_phrase() -> None:
    attributes = [("red", "rubber", "cube"), ("red", "metal", "cube"), ("blue", "rubber", "sphere"), ()]
    names = torch.zeros(1, 4, len(NAMES))
    for slot, own in enumerate(attributes):
        names[0, slot, [NAMES.index(name) for name in own]] = 1
    text = "What color is the rubber object that the red cube's sphere, metal cubes collide"
    words = torch.from_numpy(encode_question(text))[None]
    named, is_name = mentions(words, names)
    expected = {4: {0, 2}, 8: set(), 9: set(), 10: set(), 11: set(), 12: set()}  # "red cube's sphere, metal cubes"
    assert {i for i, name in enumerate(is_name[0].tolist()) if name} == set(expected)
    for word, slots in expected.items():
        assert set(named[0, word].nonzero().flatten().tolist()) == slots
    named, _ = mentions(torch.from_numpy(encode_question("Is the red cube moving"))[None], names)
    assert set(named[0, 2].nonzero().flatten().tolist()) == set(named[0, 3].nonzero().flatten().tolist()) == {0, 1}
    assert not named[0, 4].any()


def asked_of(data: Path, split: str = "train") -> tuple[SlotQuestions, list[dict[str, Any]]]:
    """The descriptive questions of a split, as numbers and as text."""
    file = Dataset(data).questions(split)
    only = [
        {**scene, "questions": [q for q in scene["questions"] if q["question_type"] == "descriptive"]}
        for scene in file.scenes
    ]  # fmt: skip
    asked = SlotQuestions(replace(file, scenes=only), VideoSlots(data / "slots"), TINY.frames)
    return asked, [question for scene in only for question in scene["questions"]]


def referents_of(data: Path, batch: Batch, order: Tensor | None = None) -> Referents:
    annotations = Annotations(Dataset(data), VideoSlots(data / "slots"), StateReader())
    return annotations.referents(batch, 4, straight(len(batch.slots)) if order is None else order)


def test_referents_give_the_answers(data: Path) -> None:
    asked, questions = asked_of(data)
    batch = asked.batch(np.arange(len(asked)))
    found, kinds = referents_of(data, batch), set()
    assert found.told.all() and len(found.told) == len(questions) > 20
    for question, nodes_of, owner in zip(questions, found.nodes.bool(), batch.owner.tolist(), strict=True):
        answer, ask = question["answer"], question["program"][-1]
        kinds.add(ask)
        if ask == "count":
            assert int(nodes_of.sum()) == int(answer)
        elif ask == "exist":
            assert bool(nodes_of.any()) == (answer == "yes")
        else:
            (slot,) = nodes_of.nonzero().flatten().tolist()  # holds the object with this id
            facts = Dataset(data).facts(batch.readings[owner].scene)
            attributes = next(item.attributes for item in facts.objects if item.id == slot)
            assert attributes[ask.removeprefix("query_")] == answer
        assert nodes_of[7:].any() <= ("collisions" in question["question"])
    assert kinds == {"count", "exist", "query_color", "query_material", "query_shape"}


def test_moments_are_those_that_questions_speak_of(data: Path) -> None:
    asked, questions = asked_of(data)
    batch = asked.batch(np.arange(len(asked)))
    found, timed = referents_of(data, batch), 0
    for question, moment, owner in zip(questions, found.moment.tolist(), batch.owner.tolist(), strict=True):
        text, reading = question["question"], batch.readings[owner]
        if "when the video" in text:
            assert moment == (7 if "ends" in text else 0)
        elif match := re.search(r"(when|before|after) the (.*?)(object|cube|sphere|cylinder) (enters|exits)", text):
            told = {*match[2].split(), *({match[3]} - {"object"})}
            facts = Dataset(data).facts(reading.scene)
            (id,) = [item.id for item in facts.objects if told <= set(item.attributes.values())]
            kind = "in" if match[4] == "enters" else "out"
            (frame,) = [event.frame for event in facts.events if (event.kind, event.objects) == (kind, {id})]
            assert moment == min(max(frame - reading.frames.start, 0) // 16, 7)
            timed += 1
        elif text in ("How many objects are moving?", "Are there any moving objects?", "How many collisions happen?"):
            assert moment == NO_MOMENT
    assert timed > 5


def test_referents_follow_the_slots_and_untold_ones_teach_nothing(data: Path) -> None:
    asked, _ = asked_of(data)
    batch = asked.batch(np.arange(len(asked)))
    plain = referents_of(data, batch)
    order = torch.tensor([3, 0, 6, 2, 1, 5, 4]).expand(len(batch.slots), -1)
    moved = referents_of(data, batch, order)
    for slot, pair in zip(moved.nodes[:, :7].T, order[0].tolist(), strict=True):
        assert torch.equal(slot, plain.nodes[:, pair])
    first, second = (ends.tolist() for ends in nodes(7))
    place = {frozenset(ends): n for n, ends in enumerate(zip(first, second, strict=True))}
    for node in range(7, 28):
        held = frozenset(order[0, [first[node], second[node]]].tolist())
        assert torch.equal(moved.nodes[:, node], plain.nodes[:, place[held]])
    untold = referents_of(data, batch._replace(programs=(None, ["count"], *batch.programs[2:])))
    assert untold.told.tolist() == [False, False] + [True] * (len(asked) - 2)
    logits = random_model()(*batch[:4])
    assert logits.asked is not None
    alone = plain._replace(told=torch.arange(len(asked)) == 0, moment=plain.moment.where(plain.told, NO_MOMENT))
    found = torch.autograd.grad(referent_losses(logits, alone)["referents"], logits.asked.referents)[0]
    assert found[0].abs().sum() > 0 and not found[1:].any()
    none = referents_of(data, batch._replace(programs=(None,) * len(asked)))
    assert all(loss == 0 for loss in referent_losses(logits, none).values())


# ------------------------------------------------------------------------------------------------ the model


def whole_batch(data: Path) -> Batch:
    asked = SlotQuestions(Dataset(data).questions("train"), VideoSlots(data / "slots"), TINY.frames)
    return asked.batch(np.arange(len(asked)))


def random_model(config: GroundedALOEConfig = TINY) -> GroundedALOE:
    torch.manual_seed(1)
    model = config.build(7, 128).eval()
    for weight in model.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    return model


def test_a_question_is_answered_alike_alone_and_among_others(data: Path) -> None:
    batch, model = whole_batch(data), random_model()
    with torch.no_grad():
        together = model(*batch[:4])
        for item in range(0, len(batch.words), 7):
            own = int(batch.owner[item])
            alone = model(
                batch.slots[own : own + 1], batch.words[item : item + 1], torch.zeros(1, dtype=torch.long),
                batch.descriptive[item : item + 1],
            )  # fmt: skip
            assert torch.allclose(alone.answer[0], together.answer[item], atol=1e-4)
            assert torch.allclose(alone.correct[0], together.correct[item], atol=1e-4)
    assert together.perceived is not None and len(together.perceived.tokens) == len(batch.slots) == 3


def test_answers_do_not_change_what_is_perceived(data: Path) -> None:
    batch, model = whole_batch(data), random_model()
    logits = model(*batch[:4])
    losses(logits, batch)["total"].backward()
    assert all(weight.grad is None for weight in model.perception.parameters())
    assert model.summary.weight.grad is not None
    assert all(weight.grad is None for weight in model.referring.parameters())
    grounding = grounding_of(data, *(Reading(s, NOTHING, range(0, 128, 4)) for s in (0, 1, 2)))
    terms = grounding_losses(model(*batch[:4]), batch, grounding)
    (terms["concepts"] + terms["collisions"]).backward()
    assert all(weight.grad is not None for weight in model.perception.parameters())


def test_what_a_choice_says_holds_or_not_whatever_is_asked(data: Path) -> None:
    file = Dataset(data).questions("train")
    expected = [
        (choice["answer"] == "correct") != ("negate" in question["program"])
        for scene in file.scenes for question in scene["questions"] for choice in question.get("choices", [])
    ]  # fmt: skip
    batch = whole_batch(data)
    found = holding(batch)[~batch.descriptive]
    assert found.tolist() == expected and not torch.equal(found.long(), batch.target[~batch.descriptive])


def test_collisions_are_mutual_and_those_who_collide_are_told_of_each_other(data: Path) -> None:
    batch, model = whole_batch(data), random_model()
    perceived = model(*batch[:4]).perceived
    assert perceived is not None
    assert torch.allclose(perceived.collisions, perceived.collisions.transpose(-1, -2), atol=1e-5)
    none = torch.zeros_like(perceived.collisions)
    one = none.clone()
    one[:, 3, 1, 4] = one[:, 3, 4, 1] = 1.0
    tubelets, names = model.tubelets(model.visible(batch.slots)), torch.zeros(3, 7, len(NAMES))
    without, with_one = (model._objects(tubelets, perceived, collided, names) for collided in (none, one))
    changed = (without - with_one).abs().sum(-1) > 1e-6
    assert changed[:, [1, 4]].all() and not changed[:, [0, 2, 3, 5, 6]].any()
    told = [changed[:, 7 + pair].all() for pair in range(21)]
    assert told == [bool({1, 4} & {i, j}) for i in range(7) for j in range(i + 1, 7)]


def test_attention_is_that_of_cls_in_the_last_layer(data: Path) -> None:
    batch, model = whole_batch(data), random_model()
    weights = model.attention(*batch[:4])
    assert weights.shape == (len(batch.words), 1, 7)
    assert (weights > 0).all() and (weights.sum((1, 2)) < 1).all()
    # Where [CLS] looks at a slot alone, what the others hold does not matter to it.
    read = model._before_last(*batch[:4])
    tokens = torch.cat([read.objects[batch.owner], read.text], dim=1)
    only = torch.zeros_like(read.seen)
    only[:, 2] = True
    looked = model._last.attention(tokens, only)
    assert torch.allclose(looked[:, :, -1, 2], torch.ones(len(tokens), TINY.heads))
    assert torch.allclose(
        model._last.attention(tokens, read.seen)[:, :, -1].sum(-1), torch.ones(len(tokens), TINY.heads)
    )


def test_blind_models_see_no_slots(data: Path) -> None:
    batch = whole_batch(data)
    others = batch._replace(slots=torch.randn_like(batch.slots))
    blind = random_model(replace(TINY, blind=True))
    with torch.no_grad():
        assert torch.equal(blind(*batch[:4]).answer, blind(*others[:4]).answer)


def test_examples_tell_what_is_asked_about(data: Path) -> None:
    asked = SlotQuestions(Dataset(data).questions("train"), VideoSlots(data / "slots"), TINY.frames)
    model, chosen = random_model(), int(asked.descriptive.argmax())
    model.referring.unlikely.data.fill_(-1e6)
    assert asked_about(model, asked, chosen) == ["Asked about, as the model sees it: nothing in this video."]
    model.referring.unlikely.data.fill_(1e6)
    (line,) = asked_about(model, asked, chosen)
    assert "slot 5; slot 6; slot 0 and slot 1; slot 0 and slot 2" in line and line.endswith("slot 5 and slot 6.")
    assert asked_about(model, asked, int((~asked.descriptive).argmax())) == []


def test_round_trip(tmp_path: Path) -> None:
    model = random_model()
    save(model, tmp_path, {})
    loaded = load(tmp_path)
    assert isinstance(loaded, GroundedALOE) and loaded.config == TINY
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("wrong", [{"layers": 1}, {"perception": 0}, {"tubelet": 5}])
def test_sizes_are_checked(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="aloe"):
        replace(TINY, **wrong)


# ------------------------------------------------------------------------------------------------ training


def test_questions_of_a_video_come_together(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, seen = stage(data, questions=4), []
    batch = made.train.batch
    monkeypatch.setattr(made.train, "batch", lambda chosen, read: (seen.append(chosen), batch(chosen, read))[1])
    made.loss(made.model, 0, 12, slice(0, 12), torch.Generator().manual_seed(0))
    (chosen,) = seen
    for group in np.split(chosen, 3):
        assert len(set(group.tolist())) == 4 and len(set(made.train.scene[group])) == 1
    with pytest.raises(ValueError, match="of a process, 10, is not a multiple of 4"):
        made.loss(made.model, 0, 10, slice(0, 10), torch.Generator())


def test_what_videos_show_and_twenty_answers_are_learned(data: Path, tmp_path: Path) -> None:
    learned = stage(data)
    file = Dataset(data).questions("train")
    ends = [{**scene, "questions": scene["questions"][:4] + scene["questions"][-3:]} for scene in file.scenes]
    learned.train = SlotQuestions(replace(file, scenes=ends), VideoSlots(data / "slots"), TINY.frames)
    assert len(learned.train) == 21 and 0 < learned.train.descriptive.sum() < 21
    trainer = TrainerConfig(
        steps=350, batch=20, lr=3e-3, warmup=20, decay=0.3, weight_decay=0.0, ema=0.0, precision="32-true",
        accelerator="cpu", log_every=50, validate_every=350,
    )  # fmt: skip
    Run(learned, trainer, tmp_path).fit()
    model = learned.model.eval()
    assert learned.train.right(predict(model, learned.train)).mean() > 0.9
    asked = learned.train.batch(np.arange(21))
    with torch.no_grad():
        logits = model(*asked[:4])
    perceived, truth = logits.perceived, grounding_of(data, *asked.readings)
    named, is_name = mentions(asked.words, truth.names[asked.owner])
    assert ((logits.mentioned > 0) == named)[is_name].float().mean() > 0.95
    assert ((perceived.concepts > 0) == (truth.concepts > 0))[truth.told].float().mean() > 0.98
    happened = truth.collisions[truth.told] > 0
    assert (perceived.collisions[truth.told] > 0)[happened].float().mean() > 0.8
    referents = referents_of(data, asked)
    assert ((logits.asked.referents > 0) == referents.nodes.bool()).all(1).float().mean() > 0.8
    timed = referents.moment != NO_MOMENT
    assert ((logits.asked.moment.argmax(1) - referents.moment).abs() <= 1)[timed].float().mean() > 0.8


# ------------------------------------------------------------------------------------------------ bundled weights


@pytest.fixture(scope="module")
def pixel_slots(data: Path) -> Path:
    """Slots of the pictures of the same scenes, by the bundled encoder."""
    encoder, renderer = Checkpoint.from_pretrained("clevrer").model.encoder, CLEVRERRenderer(64, 64)
    drawn = (map(partial(renderer.draw, Dataset(data).trajectory(scene)), range(128)) for scene in SCENES)
    videos = [torch.from_numpy(np.stack([picture for picture, _ in frames])) for frames in drawn]
    with torch.no_grad():
        slots = encoder.track(torch.stack(videos))
    VideoSlots.write(data / "pixel_slots", {"encoder": "clevrer"}, SCENES, (128, 7, 128), slots)
    return data / "pixel_slots"


# The most frequent answer per template is right for a third.
@pytest.mark.parametrize(
    ("name", "least"), [("clevrer-aloe", 0.85), ("clevrer-aloe-predicted", 0.9), ("clevrer-aloe-pixels", 0.6)]
)
def test_the_bundled_weights_answer_questions_about_new_scenes(
    data: Path, pixel_slots: Path, name: str, least: float
) -> None:
    folder = find(name)
    assert "## Results" in (folder / "README.md").read_text()
    model, slots = load(folder), VideoSlots(pixel_slots if "pixels" in name else data / "slots")
    right = []
    for split in ("train", "validation"):  # of this small data set, which they have never seen
        asked = SlotQuestions(Dataset(data).questions(split), slots, model.config.frames)
        right.append(asked.right(predict(model, asked))[asked.descriptive])
    assert np.concatenate(right).mean() > least
