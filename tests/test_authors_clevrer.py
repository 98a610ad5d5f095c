"""The authors' CLEVRER files through every command: slots and predictor, rollout, training, questions."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clevrer_scenes import write_asked_scenes
from foreign_files import DIM, predictor
from numpy.typing import NDArray
from test_released_predictor import authors_inference

from cjepa_agent import evaluate, rollout, train
from cjepa_agent.checkpoint import Checkpoint
from cjepa_agent.convert import ConvertConfig, convert
from cjepa_agent.data.slot_data import open_slots
from cjepa_agent.data.video_slots import VideoSlots
from cjepa_agent.predictors.released import ReleasedPredictor

SLOTS = 3
SCENES = {"train": (0, 1, 2), "val": (10000, 10001)}
TINY_ALOE = ["aloe.layers=1", "aloe.heads=2", "aloe.width=16", "aloe.mlp=16", "aloe.frames=4", "aloe.tubelet=2"]
TINY = ["predictor.depth=2", f"predictor.width={DIM}", "predictor.heads=4", "predictor.mlp=48"]
STEPS = ["trainer.precision=32-true", "trainer.batch=4", "dynamics.windows=4"]


def run(module: Any, *arguments: str) -> None:
    """A documented command, in this process."""
    before = sys.argv
    sys.argv = [module.__name__, *arguments]
    try:
        module.main()
    finally:
        sys.argv = before


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The authors' pickle of slots and state dict of a predictor, and CLEVRER's questions alone; all converted."""
    folder = tmp_path_factory.mktemp("authors")
    write_asked_scenes(folder / "whole")
    shutil.copytree(folder / "whole/questions", folder / "clevrer")
    rng = np.random.default_rng(0)
    slots = {
        part: {f"{scene}_pixels.mp4": rng.normal(size=(128, SLOTS, DIM)).astype(np.float32) for scene in scenes}
        for part, scenes in SCENES.items()
    }
    (folder / "slots.pkl").write_bytes(pickle.dumps(slots))
    torch.manual_seed(0)
    torch.save(predictor(rows=16), folder / "predictor.ckpt")
    convert(ConvertConfig(str(folder / "slots.pkl"), str(folder / "slots")))
    convert(ConvertConfig(str(folder / "predictor.ckpt"), str(folder / "predictor"), n_slots=SLOTS, heads=4))
    arguments = [f"checkpoint={folder / 'predictor'}", f"slots={folder / 'slots'}", f"out={folder / 'rolled'}"]
    run(rollout, *arguments, "frames=160", "batch=2")
    yield folder


def authors_rollout(slots: NDArray[np.float32], state: dict[str, torch.Tensor]) -> NDArray[np.float32]:
    """Frames 128 to 159 of one video: the released loop, two offsets, ten frames a call, the last six as history."""
    future = np.empty((32, SLOTS, DIM), np.float32)
    for offset in range(2):
        window, found = torch.from_numpy(slots[116 + offset : 128 : 2].copy()), []
        while len(found) < 16:
            predicted = authors_inference(window, state, 2, 10)
            found += list(predicted)
            window = predicted[-6:]
        future[offset::2] = torch.stack(found[:16]).numpy()
    return future


@torch.no_grad()
def test_rollouts_are_the_authors(folder: Path) -> None:
    state = torch.load(folder / "predictor.ckpt", weights_only=True)
    given = pickle.loads((folder / "slots.pkl").read_bytes())
    rolled = VideoSlots(folder / "rolled")
    for part, scene in (("train", 2), ("val", 10000)):
        slots, own = given[part][f"{scene}_pixels.mp4"], rolled.read(scene).numpy()
        np.testing.assert_array_equal(own[:128], slots)
        np.testing.assert_allclose(own[128:], authors_rollout(slots, state), atol=1e-4)


def test_rollouts_go_back_to_the_authors_pickle(folder: Path, tmp_path: Path) -> None:
    convert(ConvertConfig(str(folder / "rolled"), str(tmp_path / "rollout.pkl")))
    again = pickle.loads((tmp_path / "rollout.pkl").read_bytes())
    assert {part: sorted(again[part]) for part in again} == {
        part: [f"{scene}_pixels.mp4" for scene in scenes] for part, scenes in SCENES.items()
    }
    assert again["val"]["10001_pixels.mp4"].shape == (160, SLOTS, DIM)


@pytest.mark.parametrize("imported", [False, True], ids=["rolled here", "rollout pickle"])
def test_questions(folder: Path, tmp_path: Path, imported: bool) -> None:
    slots = folder / "rolled"
    if imported:
        convert(ConvertConfig(str(folder / "rolled"), str(tmp_path / "rollout.pkl")))
        slots = tmp_path / "rolled"
        assert "160 frames" in convert(ConvertConfig(str(tmp_path / "rollout.pkl"), str(slots)))
        np.testing.assert_array_equal(VideoSlots(slots).array, VideoSlots(folder / "rolled").array)
        with pytest.raises(ValueError, match="holds frames that a predictor made"):
            open_slots(folder / "clevrer", slots)
    arguments = [f"data={folder / 'clevrer'}", f"slots={slots}"]
    steps = ["trainer.steps=2", "trainer.batch=4"]
    run(train, "stage=vqa", "trainer=vqa", *arguments, f"out={tmp_path / 'aloe'}", *TINY_ALOE, *steps)
    weights = f"weights={tmp_path / 'aloe/checkpoint'}"
    run(evaluate, "task=vqa", weights, *arguments, "split=validation", f"out={tmp_path / 'results'}")
    report = json.loads((tmp_path / "results/vqa.json").read_text())
    assert "predictive" in {row["name"] for row in report["accuracy"]}


@pytest.mark.parametrize("init", [False, True], ids=["anew", "from the released weights"])
def test_training_the_released_architecture(folder: Path, tmp_path: Path, init: bool) -> None:
    start = [f"init={folder / 'predictor'}", "trainer.lr=1e-12", "trainer.weight_decay=0"] if init else []
    run(
        train, "predictor=released_clevrer", "dynamics=clevrer", "trainer=released", "mask.kind=fixed",
        "mask.count=2", f"slots={folder / 'slots'}", f"out={tmp_path}", *TINY, *STEPS, "trainer.steps=2", *start,
    )  # fmt: skip
    model = Checkpoint.from_pretrained(tmp_path / "checkpoint").model
    assert isinstance(model.predictor, ReleasedPredictor) and model.config.action_block == 2
    assert torch.equal(model.processor.slot_mean, torch.zeros(SLOTS, DIM)), "slots are tokens as they are"
    assert torch.equal(model.processor.slot_scale, torch.ones(DIM))
    if init:
        released = Checkpoint.from_pretrained(folder / "predictor").model.state_dict()
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(tensor, released[name], rtol=0, atol=1e-8)
    arguments = [f"checkpoint={tmp_path / 'checkpoint'}", f"slots={folder / 'slots'}", f"out={tmp_path / 'rolled'}"]
    run(rollout, *arguments, "frames=130")
    assert VideoSlots(tmp_path / "rolled").frames == 130
