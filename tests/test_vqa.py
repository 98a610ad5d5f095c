"""Answering CLEVRER questions from slots: tokens, the model, and training."""

from __future__ import annotations

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asked_videos import TINY, stage, write_asked_videos
from clevrer_scenes import small_file
from torch import Tensor
from torch.nn import functional as F

from cjepa_agent.data.video_slots import VideoSlots
from cjepa_agent.encoders.autoencoder import SlotAutoencoder
from cjepa_agent.encoders.kinds import EncoderConfig
from cjepa_agent.training.loop import Run, TrainerConfig, learning_rate
from cjepa_agent.vqa.aloe import ALOE, ALOEConfig
from cjepa_agent.vqa.answerer import losses, predict
from cjepa_agent.vqa.checkpoint import load, save
from cjepa_agent.vqa.data import Batch, SlotQuestions
from cjepa_agent.vqa.intervened import Intervened
from configs.presets import preset
from envs.clevrer.dataset import Dataset
from envs.clevrer.questions import QuestionFile, read_questions
from envs.clevrer.questions.vocabulary import ATTRIBUTES

STEPS = TrainerConfig(
    steps=6, batch=8, optimizer="adamw", lr=1e-3, warmup=2, ema=0.0, precision="32-true", accelerator="cpu",
    log_every=1, validate_every=3, save_every=2,
)  # fmt: skip
# CLEVRER_vocab.json of SlotFormer's repository numbers these from 1 on.
PUBLISHED_WORDS = """after and any are before begins between blue brown collide collides colliding collision
collisions color cube cube's cube, cubes cyan cylinder cylinder's cylinder, cylinders ends
enter entering enters entrance event exit exiting exits first following for gray green happen
how if is last many material metal moving next not object object's object, objects of presence
purple red removed removed, responsible rubber scene second shape sphere sphere's sphere,
spheres stationary that the there to video what when which will with without yellow"""
PUBLISHED_ANSWERS = "0 1 2 3 4 5 blue brown cube cyan cylinder gray green metal no purple red rubber sphere yellow yes"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_asked_videos(tmp_path_factory.mktemp("clevrer"))


@pytest.fixture(scope="module")
def slots(data: Path) -> Path:
    return data / "slots"


@pytest.fixture(scope="module")
def intervened(data: Path) -> Path:
    return data / "intervened"


def counting_slots(folder: Path, frames: int) -> VideoSlots:
    """Slots that hold the number of their frame."""
    video = torch.arange(float(frames))[:, None, None].expand(-1, 2, 3)
    VideoSlots.write(folder, {}, [0], (frames, 2, 3), [video])
    return VideoSlots(folder)


def whole_batch(data: Path, slots: Path, frames: int = TINY.frames) -> Batch:
    asked = SlotQuestions(read_questions(data / "questions" / "train.json"), VideoSlots(slots), frames)
    return asked.batch(np.arange(len(asked)))


# ------------------------------------------------------------------------------------------------ tokens and frames


def test_words_are_numbered_as_published(data: Path, slots: Path) -> None:
    numbers = {word: number for number, word in enumerate(PUBLISHED_WORDS.split(), start=1)}
    answers = {word: number for number, word in enumerate(PUBLISHED_ANSWERS.split(), start=1)}
    assert len(numbers) == 81 and len(answers) == 21

    def words(text: str, length: int) -> list[int]:
        found = [numbers[word] for word in text.lower().replace("?", "").split(" ") if word]
        return found + [0] * (length - len(found))

    file = read_questions(data / "questions" / "train.json")
    rows, targets = [], []
    for scene in file.scenes:
        for question in scene["questions"]:
            if question["question_type"] == "descriptive":
                rows.append(words(question["question"], 32))
                targets.append(answers[question["answer"]])
            for choice in question.get("choices", []):
                rows.append(words(question["question"], 20) + words(choice["choice"], 12))
                targets.append(int(choice["answer"] == "correct"))
    asked = SlotQuestions(file, VideoSlots(slots), 4)
    assert asked.words.tolist() == rows and asked.target.tolist() == targets
    assert asked.first[-1] == len(rows) and len(asked) == sum(len(scene["questions"]) for scene in file.scenes)


@pytest.mark.parametrize(("total", "shift"), [(128, 0), (160, 32)])
def test_predictive_questions_read_the_predicted_frames(tmp_path: Path, total: int, shift: int) -> None:
    asked = SlotQuestions(small_file(), counting_slots(tmp_path, total), 25)
    assert asked.stride == 5 and asked.starts == 8
    read = [asked.read(asked.reading(question, start))[:, 1, 2] for question, start in ((0, 0), (1, 0), (1, 7))]
    assert read[0].tolist() == list(range(0, 125, 5))
    assert read[1].tolist() == list(range(shift, shift + 125, 5))
    assert read[2].tolist() == list(range(shift + 7, shift + 128, 5))
    assert asked.batch(np.array([0])).slots[0, 0, 0, 0] == 4


def test_counterfactual_questions_read_the_prediction_without_their_object(
    data: Path, slots: Path, intervened: Path
) -> None:
    dataset = Dataset(data)
    file = dataset.questions("train")
    plain = SlotQuestions(file, VideoSlots(slots), 60)
    asked = SlotQuestions(file, VideoSlots(slots), 60, Intervened(intervened, dataset, VideoSlots(slots)))
    told = [(scene["scene_index"], question) for scene in file.scenes for question in scene["questions"]]
    kinds = {question["question_type"] for _, question in told}
    assert "counterfactual" in kinds and "descriptive" in kinds
    for number, (scene, question) in enumerate(told):
        if question["question_type"] != "counterfactual":
            assert torch.equal(asked.read(asked.reading(number, 3)), plain.read(plain.reading(number, 3)))
            continue
        described = [
            word for word in question["program"] if word in {v for values in ATTRIBUTES.values() for v in values}
        ]
        fitting = [item.id for item in dataset.facts(scene).objects if set(described) <= set(item.attributes.values())]
        (removed,) = fitting
        expected = 1000 * removed + torch.arange(1.0, 180, 3)
        assert torch.equal(asked.read(asked.reading(number, 5))[:, 0, 0], expected.half().float())


@pytest.mark.parametrize("length", [128, 160, 180])
def test_starts_reach_the_end_of_predictions_without_objects(
    data: Path, slots: Path, intervened: Path, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = Dataset(data)
    predicted = Intervened(intervened, dataset, VideoSlots(slots))
    asked = SlotQuestions(dataset.questions("train"), VideoSlots(slots), 60, predicted)
    monkeypatch.setattr(Intervened, "frames", length)
    question = int(np.flatnonzero(asked.removed >= 0)[0])
    read = [asked.reading(question, start).frames for start in range(asked.starts)]
    assert read[0][0] == 0 and length - 5 <= read[-1][-1] < length and {len(frames) for frames in read} == {60}


def test_predictions_without_objects_must_fit(data: Path, slots: Path, intervened: Path, tmp_path: Path) -> None:
    dataset, file = Dataset(data), Dataset(data).questions("train")
    with pytest.raises(FileNotFoundError, match="no predictions without objects; .*remove=drop"):
        Intervened(tmp_path, dataset, VideoSlots(slots))
    fewer = Path(shutil.copytree(intervened, tmp_path / "fewer"))
    for slot in range(1, 4):
        shutil.rmtree(fewer / f"without_{slot}")
    (fewer / "without_0.bak").mkdir()
    with pytest.raises(ValueError, match="no prediction of scene . without slot"):
        SlotQuestions(file, VideoSlots(slots), 4, Intervened(fewer, dataset, VideoSlots(slots)))
    other = VideoSlots(slots)
    other.identity = {"dataset": "tiny, extracted again"}
    with pytest.raises(ValueError, match="slots and predictions of the same extraction"):
        Intervened(fewer, dataset, other)  # of other videos, as the first frame tells
    same = torch.from_numpy(VideoSlots(fewer / "without_0").array[:, :1].astype(np.float32)).expand(-1, 128, -1, -1)
    VideoSlots.write(tmp_path / "same", other.identity, VideoSlots(slots).scenes, (128, 3, 16), iter(same))
    SlotAutoencoder.load(fewer / "without_0").save(tmp_path / "same")
    assert Intervened(fewer, dataset, VideoSlots(tmp_path / "same")).frames == 180
    other.identity = {"dataset": "tiny, extracted again", "encoder": "another"}
    with pytest.raises(ValueError, match="slots and predictions of the same extraction"):
        Intervened(fewer, dataset, other)
    SlotAutoencoder(EncoderConfig(n_slots=7)).save(fewer / "without_0")
    with pytest.raises(ValueError, match="slots and predictions of the same extraction"):
        Intervened(fewer, dataset, VideoSlots(tmp_path / "same"))
    mixed = Path(shutil.copytree(intervened, tmp_path / "mixed"))
    meta = json.loads((mixed / "without_1" / "slots.json").read_text())
    (mixed / "without_1" / "slots.json").write_text(json.dumps({**meta, "identity": {"slot": 1, "checkpoint": "x"}}))
    with pytest.raises(ValueError, match="made of different things"):
        Intervened(mixed, dataset, VideoSlots(slots))
    scenes = json.loads(json.dumps(file.scenes))
    cut = next(q for scene in scenes for q in scene["questions"] if q["question_type"] == "counterfactual")
    cut["program"] = ["all_events", "objects", "get_counterfact"]
    with pytest.raises(ValueError, match=rf"question {cut['question_id']}: which object is taken away is not told"):
        SlotQuestions(
            replace(file, scenes=scenes), VideoSlots(slots), 4, Intervened(intervened, dataset, VideoSlots(slots))
        )


def test_questions_share_what_they_read(tmp_path: Path) -> None:
    asked = SlotQuestions(small_file(), counting_slots(tmp_path, 160), 5)
    batch = asked.batch(np.array([1, 0, 1]))
    assert batch.slots.shape == (2, 5, 2, 3) and batch.words.shape == (5, 32)
    assert batch.owner.tolist() == [0, 0, 1, 0, 0] and batch.target.tolist() == [0, 1, 3, 0, 1]
    assert batch.descriptive.tolist() == [False, False, True, False, False]
    assert torch.equal(batch.slots[0], asked.read(asked.reading(1, asked.starts // 2)))
    assert torch.equal(batch.slots[1], asked.read(asked.reading(0, asked.starts // 2)))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (small_file("What will explode next?"), r"train.json: scene 0, question 1: unknown words \['explode'\]"),
        (replace(small_file(), problems=["train.json: scene 0: question 1: question_type must be one of"]), "correct"),
        (replace(small_file(), scenes=[{**small_file().scenes[0], "scene_index": 4}]), "no slots of 1 scenes of train"),
        (replace(small_file(), scenes=[]), "holds no questions"),
    ],
)
def test_bad_questions_are_named(tmp_path: Path, file: QuestionFile, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SlotQuestions(file, counting_slots(tmp_path, 128), 5)


def test_unknown_types_are_named_with_file_and_scene(data: Path, slots: Path, tmp_path: Path) -> None:
    scenes = json.loads((data / "questions" / "train.json").read_text())
    scenes[1]["questions"][2]["question_type"] = "rhetorical"
    (tmp_path / "train.json").write_text(json.dumps(scenes))
    with pytest.raises(ValueError, match=r"train.json: scene 1: question 2: question_type must .* got 'rhetorical'"):
        SlotQuestions(read_questions(tmp_path / "train.json"), VideoSlots(slots), 4)


def test_short_videos_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 100 frames per video, expected 128"):
        SlotQuestions(small_file(), counting_slots(tmp_path, 100), 5)


# ------------------------------------------------------------------------------------------------ the model


def plain_forward(model: ALOE, batch: Batch) -> tuple[Tensor, Tensor]:
    """ALOE item by item, from its weights and arithmetic alone."""
    w, config = dict(model.named_parameters()), model.config
    answers, corrects = [], []
    for item in range(len(batch.words)):
        video = batch.slots[batch.owner[item]].reshape(-1, model.slot_dim)
        seen = torch.cat([video, torch.tensor([[0.0, 1.0]]).repeat(len(video), 1)], 1)
        text = []
        for place, word in enumerate(batch.words[item].tolist()):
            part = [1.0, 0.0] if place < 20 and not batch.descriptive[item] else [0.0, 1.0]
            text.append(torch.cat([w["words.weight"][word], torch.tensor([*part, 1.0, 0.0])]))
        x = torch.cat(
            [
                w["cls"][0],
                seen @ w["slot_in.weight"].T + w["slot_in.bias"],
                torch.stack(text) @ w["text_in.weight"].T + w["text_in.bias"],
            ]
        )
        x = x + w["positions"][0]
        used = torch.ones(len(x), dtype=torch.bool)
        used[-32:] = batch.words[item] != 0
        for layer in range(config.layers):
            p = {k.split(f"layers.{layer}.")[1]: v for k, v in w.items() if f"layers.{layer}." in k}
            y = F.layer_norm(x, x.shape[1:], p["norm1.weight"], p["norm1.bias"])
            q, k, v = (y @ p["self_attn.in_proj_weight"].T + p["self_attn.in_proj_bias"]).chunk(3, 1)
            mixed = []
            for a, b, c in zip(*(t.chunk(config.heads, 1) for t in (q, k, v)), strict=True):
                score = (a @ b.T / math.sqrt(a.shape[1]))[:, used]
                mixed.append(torch.exp(score) / torch.exp(score).sum(1, keepdim=True) @ c[used])
            x = x + torch.cat(mixed, 1) @ p["self_attn.out_proj.weight"].T + p["self_attn.out_proj.bias"]
            y = F.layer_norm(x, x.shape[1:], p["norm2.weight"], p["norm2.bias"])
            y = (y @ p["linear1.weight"].T + p["linear1.bias"]).clamp(min=0)
            x = x + y @ p["linear2.weight"].T + p["linear2.bias"]
        for name, outputs in (("answer_head", answers), ("choice_head", corrects)):
            hidden = (x[0] @ w[f"{name}.0.weight"].T + w[f"{name}.0.bias"]).clamp(min=0)
            outputs.append(hidden @ w[f"{name}.2.weight"].T + w[f"{name}.2.bias"])
    return torch.stack(answers), torch.cat(corrects)


def random_model(config: ALOEConfig = TINY) -> ALOE:
    """With weights of which none is zero."""
    torch.manual_seed(1)
    model = ALOE(config, 3, 16).eval()
    for weight in model.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    return model


def answer(model: ALOE, batch: Batch) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return model(batch.slots, batch.words, batch.owner, batch.descriptive)[:2]


def test_the_model_is_the_published_one(data: Path, slots: Path) -> None:
    batch = whole_batch(data, slots)
    model = random_model()
    found = answer(model, batch)
    with torch.no_grad():
        expected = plain_forward(model, batch)
    assert torch.allclose(found[0], expected[0], atol=1e-4) and torch.allclose(found[1], expected[1], atol=1e-4)


def test_the_paper_preset_has_the_published_sizes() -> None:
    shapes = {name: tuple(p.shape) for name, p in ALOE(preset(ALOEConfig, "aloe", "paper"), 7, 128).named_parameters()}
    assert shapes["positions"] == (1, 208, 144) and shapes["words.weight"] == (82, 14)
    assert shapes["text_in.weight"] == (144, 18) and shapes["slot_in.weight"] == (144, 130)
    assert shapes["transformer.layers.11.linear1.weight"] == (512, 144)
    assert "transformer.layers.12.linear1.weight" not in shapes
    assert shapes["answer_head.2.weight"] == (22, 128) and shapes["choice_head.2.weight"] == (1, 128)


def test_the_order_of_choices_does_not_matter(data: Path, slots: Path) -> None:
    batch = whole_batch(data, slots)
    model = random_model()
    order = torch.arange(len(batch.words)).flip(0)
    shuffled = Batch(batch.slots, *(tensor[order] for tensor in batch[1:5]), *batch[5:])
    for one, other in zip(answer(model, batch), answer(model, shuffled), strict=True):
        assert torch.allclose(one[order], other, atol=1e-5)


def test_several_readings_of_a_video_answer_together(data: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    videos = [3 * torch.randn(128, 3, 16, generator=generator) for _ in range(3)]
    VideoSlots.write(tmp_path, {}, [0, 1, 2], (128, 3, 16), videos)
    asked = SlotQuestions(read_questions(data / "questions" / "train.json"), VideoSlots(tmp_path), TINY.frames)
    assert asked.spread(1) == [asked.starts // 2] and asked.spread(3) == [0, asked.starts // 2, asked.starts - 1]
    model, everything = random_model(), np.arange(len(asked))
    for weight in model.parameters():
        weight.data *= 3.0  # so that answers depend on the frames
    answers, odds = [], []
    for start in (0, asked.starts - 1):
        batch = asked.batch(everything, asked.readings(everything, np.full(len(asked), start)))
        answer_logits, choice_logits = answer(model, batch)
        answers.append(answer_logits.double().softmax(1).numpy())
        odds.append(choice_logits.double().exp().numpy())
    likeliest = (answers[0] * answers[1])[:, 1:].argmax(1) + 1
    expected = np.where(batch.descriptive, likeliest, odds[0] * odds[1] > 1)
    assert np.array_equal(predict(model, asked, starts=2), expected)
    assert np.array_equal(predict(model, asked, batch=3, starts=2), expected)
    for chances, of_choices in zip(answers, odds, strict=True):
        alone = np.where(batch.descriptive, chances[:, 1:].argmax(1) + 1, of_choices > 1)
        assert not np.array_equal(alone, expected), "a reading of its own answers otherwise"
    with pytest.raises(ValueError, match=f"can be read from {asked.starts} starts, got starts={asked.starts + 1}"):
        predict(model, asked, starts=asked.starts + 1)


def test_padding_does_not_matter(data: Path, slots: Path) -> None:
    batch = whole_batch(data, slots)
    model = random_model()
    before = answer(model, batch)
    model.words.weight.data[0] = 100.0
    assert torch.allclose(answer(model, batch)[0], before[0], atol=1e-5)


def test_blind_models_see_no_slots(data: Path, slots: Path) -> None:
    batch = whole_batch(data, slots)
    others = batch._replace(slots=torch.randn_like(batch.slots))
    blind = random_model(replace(TINY, blind=True))
    assert torch.equal(answer(blind, batch)[0], answer(blind, others)[0])
    assert not torch.allclose(answer(random_model(), batch)[0], answer(random_model(), others)[0])


def test_attention_is_that_of_the_last_layer(data: Path, slots: Path) -> None:
    batch = whole_batch(data, slots)
    model = random_model(replace(TINY, layers=1, tubelet=2))
    weights = model.attention(batch.slots, batch.words, batch.owner, batch.descriptive)
    assert weights.shape == (len(batch.words), 2, 3)
    assert (weights > 0).all() and (weights.sum((1, 2)) < 1).all()
    # A slot whose key is blown up along the query of [CLS] takes all attention.
    layer, tokens = model.transformer.layers[0], model._tokens(*batch[:4])[0]
    query = (
        layer.norm1(tokens[:1, :1])[0, 0] @ layer.self_attn.in_proj_weight[:32].T + layer.self_attn.in_proj_bias[:32]
    )
    keys = layer.norm1(tokens[0]) @ layer.self_attn.in_proj_weight[32:64].T + layer.self_attn.in_proj_bias[32:64]
    scores = torch.stack([(keys[:, h : h + 16] @ query[h : h + 16]) / 4 for h in (0, 16)])
    scores[:, -32:] = scores[:, -32:].masked_fill(batch.words[0] == 0, -torch.inf)
    assert torch.allclose(weights[0].flatten(), scores.softmax(1).mean(0)[1:7], atol=1e-5)


def test_a_tubelet_holds_successive_frames_of_one_slot() -> None:
    model = random_model(replace(TINY, tubelet=2))
    words, owner = torch.ones(1, 32, dtype=torch.long), torch.zeros(1, dtype=torch.long)
    slots = torch.randn(1, 4, 3, 16, generator=torch.Generator().manual_seed(0))
    before = model._tokens(slots, words, owner, owner == 0)[0]
    slots[0, 2, 1] += 1.0  # the second slot in the first frame of the second tubelet
    after = model._tokens(slots, words, owner, owner == 0)[0]
    changed = (before != after).any(-1)[0].nonzero().flatten()
    assert changed.tolist() == [1 + 1 * 3 + 1] and before.shape[1] == 1 + 2 * 3 + 32


def test_losses_are_means_over_their_own_questions(data: Path, slots: Path) -> None:
    batch = whole_batch(data, slots)
    logits = random_model()(*batch[:4])
    terms = losses(logits, batch)
    rows = range(len(batch.words))
    answers = [-logits.answer[i].log_softmax(0)[batch.target[i]] for i in rows if batch.descriptive[i]]
    choices = [-F.logsigmoid(logits.correct[i] * (2 * batch.target[i] - 1)) for i in rows if not batch.descriptive[i]]
    assert torch.allclose(terms["answer"], torch.stack(answers).mean())
    assert torch.allclose(terms["choice"], torch.stack(choices).mean())
    assert torch.allclose(terms["total"], terms["answer"] + terms["choice"])
    alone = batch._replace(descriptive=torch.ones_like(batch.descriptive), target=batch.target.clamp(min=1))
    assert losses(logits, alone)["choice"] == 0


def test_slots_of_another_shape_are_refused(data: Path, slots: Path) -> None:
    batch = whole_batch(data, slots)
    with pytest.raises(ValueError, match=r"slots are \(4, 3, 15\), the model reads .* \(4, 3, 16\)"):
        answer(random_model(), batch._replace(slots=batch.slots[..., :15]))


def test_round_trip_and_foreign_files(tmp_path: Path) -> None:
    model = random_model()
    save(model, tmp_path, {"note": "tiny"})
    loaded = load(tmp_path)
    assert loaded.config == model.config and not loaded.training
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"model_type": "other"}, "another kind of model"),
        ({"model": {**config["model"], "colour": 1}}, "not a configuration of ALOE"),
        ({"slot_dim": 17}, "does not fit"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=message):
            load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match="truncated"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match="no file at"):
        load(tmp_path / "nowhere")


# ------------------------------------------------------------------------------------------------ training


def test_the_rate_rises_and_falls_as_published() -> None:
    config = TrainerConfig(steps=1000, warmup=100, decay=0.9, shape="cosine", floor=0.01)
    for step in (0, 50, 99, 100, 300, 999):
        rising = 0.01 + 0.99 * (step + 1) / 100
        falling = 0.01 + 0.99 * (1 + math.cos(math.pi * (step - 100) / 900)) / 2
        assert learning_rate(step, config) == pytest.approx(rising if step < 100 else falling)


def test_a_killed_run_resumes_to_the_same_weights(
    data: Path, slots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Run(stage(data), STEPS, tmp_path / "whole").fit()
    plain = Run._milestones

    def killed(self: Run, log: Any) -> None:
        if self.step == 5:
            raise KeyboardInterrupt
        plain(self, log)

    monkeypatch.setattr(Run, "_milestones", killed)
    with pytest.raises(KeyboardInterrupt):
        Run(stage(data), STEPS, tmp_path / "killed").fit()
    monkeypatch.setattr(Run, "_milestones", plain)
    torch.manual_seed(99)
    Run(stage(data), STEPS, tmp_path / "killed").fit()
    whole, resumed = (load(tmp_path / name / "checkpoint").state_dict() for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert (tmp_path / "whole" / "train.csv").read_text() == (tmp_path / "killed" / "train.csv").read_text()
    names = {row[1] for row in csv.reader((tmp_path / "whole" / "validation.csv").open())}
    assert {"descriptive", "explanatory", "counterfactual", "all"} <= names


def test_twenty_questions_are_learned(data: Path, slots: Path, tmp_path: Path) -> None:
    learned = stage(data, replace(TINY, dropout=0.0))
    file = read_questions(data / "questions" / "train.json")
    # Of each scene the first, which are descriptive, and the last, which are not.
    ends = [scene["questions"][:4] + scene["questions"][-3:] for scene in file.scenes]
    scenes = [{**scene, "questions": chosen} for scene, chosen in zip(file.scenes, ends, strict=True)]
    scenes[0]["questions"].pop(0)
    learned.train = SlotQuestions(replace(file, scenes=scenes), VideoSlots(slots), TINY.frames)
    assert len(learned.train) == 20 and 0 < learned.train.descriptive.sum() < 20
    Run(learned, replace(STEPS, steps=400, batch=20, lr=3e-3, log_every=50, validate_every=400), tmp_path).fit()
    assert learned.train.right(predict(learned.model.eval(), learned.train)).all()
