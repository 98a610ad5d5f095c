"""The converter on files of all documented kinds, and on broken and malicious ones."""

from __future__ import annotations

import os
import pickle
import subprocess
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import run as run_command
from foreign_files import DIM, Tensors, embedders, module_of, predictor, stosavi, videosaur, world_model
from numpy.typing import NDArray

from cjepa_agent.agent import CJEPAAgent
from cjepa_agent.checkpoint import Checkpoint
from cjepa_agent.convert import ConvertConfig, convert
from cjepa_agent.data.episodes import EpisodeFile, write_episodes
from cjepa_agent.data.slot_data import SlotData
from cjepa_agent.data.video_slots import VideoSlots
from cjepa_agent.encoders.autoencoder import SlotAutoencoder
from cjepa_agent.interop.pickles import ForeignPickleError, memory_needed, read_pickle
from cjepa_agent.planning import ObjectiveSettings, PlannerSettings
from cjepa_agent.predictors.released import ReleasedPredictor
from planners import CEMConfig


def run(source: Path, out: Path, **options: Any) -> str:
    return convert(ConvertConfig(str(source), str(out), **{"heads": 4, **options}))


WRAPPINGS: dict[str, Callable[[Tensors], Any]] = {
    "plain": lambda tensors: tensors,
    "state_dict": lambda tensors: {"state_dict": tensors, "epoch": 3},
    "lightning": lambda tensors: {"state_dict": tensors, "pytorch-lightning_version": "2.1", "loops": {"x": [1, None]}},
    "module": module_of,
}


@pytest.mark.parametrize("wrapping", list(WRAPPINGS))
@pytest.mark.parametrize("rows", [4, 16])
def test_predictors(tmp_path: Path, wrapping: str, rows: int) -> None:
    nodes = rows == 4
    tensors = predictor("model.predictor.", rows) | (embedders() if nodes else {})
    torch.save(WRAPPINGS[wrapping](tensors), tmp_path / "source.ckpt")
    assert "predictor" in run(tmp_path / "source.ckpt", tmp_path / "out")
    checkpoint = Checkpoint.from_pretrained(tmp_path / "out")
    loaded = checkpoint.model.predictor
    assert isinstance(loaded, ReleasedPredictor) and checkpoint.model.config.action_block == (5 if nodes else 2)
    assert (loaded.n_slots, loaded.proprio_dim, loaded.action_dim) == ((4, 4, 10) if nodes else (7, 0, 0))
    assert (loaded.config.history, loaded.config.future) == ((3, 1) if nodes else (6, 10))
    assert loaded.config.matching == nodes
    state = loaded.state_dict()
    for name, tensor in tensors.items():
        own = name.removeprefix("model.").removeprefix("predictor.").replace(".patch_embed", "")
        assert torch.equal(state[own], tensor.squeeze(-1) if "encoder.patch_embed.weight" in name else tensor), name


def test_a_predictor_alone_without_prefix(tmp_path: Path) -> None:
    torch.save(predictor(rows=16), tmp_path / "predictor.ckpt")
    run(tmp_path / "predictor.ckpt", tmp_path / "out")
    checkpoint = Checkpoint.from_pretrained(tmp_path / "out")
    assert checkpoint.model.predictor.n_slots == 7
    with pytest.raises(ValueError, match="came without their encoder"):
        checkpoint.model.encoder.read(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))


@pytest.mark.parametrize("hf", [True, False], ids=["transformers", "timm"])
def test_videosaur(tmp_path: Path, hf: bool) -> None:
    torch.save({"state_dict": videosaur(hf)}, tmp_path / "step.ckpt")
    with pytest.raises(ValueError, match=r"do not tell the number of slots; set n_slots=4"):
        run(tmp_path / "step.ckpt", tmp_path / "out")
    run(tmp_path / "step.ckpt", tmp_path / "out", n_slots=4)
    encoder = SlotAutoencoder.load(tmp_path / "out").encoder
    slots = encoder.read(torch.zeros(1, 40, 40, 3, dtype=torch.uint8))
    assert slots.shape == (1, 4, DIM) and slots.isfinite().all()


def test_stosavi(tmp_path: Path) -> None:
    torch.save({"state_dict": stosavi()}, tmp_path / "savi.pth")
    run(tmp_path / "savi.pth", tmp_path / "out")
    encoder = SlotAutoencoder.load(tmp_path / "out").encoder
    assert encoder.read(torch.zeros(1, 40, 60, 3, dtype=torch.uint8)).shape == (1, 3, DIM)


def test_a_whole_world_model_plans(tmp_path: Path) -> None:
    torch.save(module_of(world_model()), tmp_path / "object.ckpt")
    said = run(tmp_path / "object.ckpt", tmp_path / "out", n_slots=4)
    assert "pickled module" in said and "predictor and videosaur" in said
    checkpoint = Checkpoint.from_pretrained(tmp_path / "out")
    assert "random" in checkpoint.training["decoder"] and "DINO-WM" in checkpoint.training["normalisation"]
    assert "Privileged" not in (tmp_path / "out/README.md").read_text()
    settings = PlannerSettings(cem=CEMConfig(n_samples=4, n_iterations=2, n_elites=2))
    agent = CJEPAAgent(checkpoint, settings, ObjectiveSettings(matching=True))
    frame = np.random.default_rng(0).integers(0, 256, (28, 28, 3), np.uint8)
    observation = {"pixels": frame, "proprio": np.ones(4), "goal_pixels": frame[::-1], "goal_proprio": np.ones(4)}
    actions = [agent.predict(observation)[0]]
    agent.reset()
    actions.append(agent.predict(observation)[0])
    assert np.array_equal(*actions) and np.abs(actions[0]).max() <= 1


def test_goal_slots_start_from_the_frames(tmp_path: Path) -> None:
    torch.save(world_model(), tmp_path / "weights.ckpt")
    run(tmp_path / "weights.ckpt", tmp_path / "out", n_slots=4)
    model = Checkpoint.from_pretrained(tmp_path / "out").model
    frames = torch.randint(0, 256, (2, 28, 28, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    proprio = torch.zeros(1, 4)
    start = model.encode(frames[:1], proprio)
    goal = model.encode(frames[1:], proprio, start.slots)
    assert torch.equal(goal.slots, model.encoder.read(frames[1:], start.slots))
    assert not torch.allclose(goal.slots, model.encode(frames[1:], proprio).slots)


def edited(tensors: Tensors, change: Callable[[Tensors], object]) -> Tensors:
    change(tensors)
    return tensors


NAME = "model.predictor.transformer.layers.1.1.4.weight"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: edited(world_model(), lambda t: t.pop(NAME)), r"missing tensors .*layers\.1\.1\.4\.weight"),
        (lambda: edited(world_model(), lambda t: t.update(model_extra=torch.zeros(1))), "unexpected .*model_extra"),
        (lambda: edited(world_model(), lambda t: t.update({NAME + "s": t.pop(NAME)})), "missing .*unexpected"),
        (lambda: edited(world_model(), lambda t: t.update({NAME: t[NAME][:-1]})), r"weight is .*\(31, 48\), expected"),
        (lambda: edited(world_model(), lambda t: t[NAME].fill_(torch.nan)), "NaN or infinite"),
        (lambda: edited(predictor(), lambda t: t.pop("time_pos_embed")), "no network that is known here"),
        (lambda: edited(predictor(), lambda t: t.update(time_pos_embed=torch.zeros(3))), "fewer axes than"),
        (lambda: predictor(rows=9), "time embedding of 9 rows.*history= as 1 to 8"),
        (lambda: edited(videosaur(), lambda t: t.pop("initializer.mean")), r"lacks the tensors \['encoder.mean'\]"),
        (lambda: edited(stosavi(), lambda t: t.update(other=torch.zeros(1))), r"unexpected tensors \['other'\]"),
        (lambda: {"state_dict": {}}, "no weights"),
        (lambda: {"weights": torch.zeros(1), "name": "x"}, "entries that are no tensors"),
        (lambda: [1, 2], "holds no weights"),
    ],
)  # fmt: skip
def test_wrong_weights(tmp_path: Path, make: Callable[[], Any], message: str) -> None:
    torch.save(make(), tmp_path / "source.ckpt")
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "source.ckpt", tmp_path / "out", n_slots=4 if "lacks" not in message else 0)
    assert [path.name for path in tmp_path.iterdir()] == ["source.ckpt"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("kind", ["torch", "pickle"])
def test_truncated(tmp_path: Path, kind: str, share: float) -> None:
    source = tmp_path / "source"
    if kind == "torch":
        torch.save(world_model(), source)
    else:
        source.write_bytes(pickle.dumps(slots()))
    source.write_bytes(source.read_bytes()[: int(share * source.stat().st_size)])
    with pytest.raises(ValueError, match=r"truncated|neither a pickle nor"):
        run(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


class Malicious:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
@pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: {"state_dict": {"a": np.zeros(1), "b": evil}}])
@pytest.mark.parametrize("function", [os.system, subprocess.run, eval, os.remove, __import__])
def test_malicious(tmp_path: Path, save: Any, wrap: Any, function: Callable[..., Any]) -> None:
    victim = tmp_path / "victim"
    victim.touch()
    argument = str(victim) if function is os.remove else f"rm {victim}" if function is os.system else "1/0"
    save(wrap(Malicious(function, argument)), tmp_path / "source")
    for objects in (False, True):
        with pytest.raises(ForeignPickleError, match=r"Nothing of it was executed|holds .*; expected only"):
            read_pickle(tmp_path / "source", objects)
    with pytest.raises(ValueError):
        run(tmp_path / "source", tmp_path / "out")
    assert victim.exists() and sorted(path.name for path in tmp_path.iterdir()) == ["source", "victim"]


@pytest.mark.parametrize("objects", [False, True])
def test_tensors_need_torch_save(tmp_path: Path, objects: bool) -> None:
    (tmp_path / "source").write_bytes(pickle.dumps({"state_dict": {"a": torch.zeros(1)}}))
    with pytest.raises(ForeignPickleError, match="tensors that pickle wrote; save them with torch.save"):
        read_pickle(tmp_path / "source", objects)


def slots(key: str = "{}_pixels.mp4") -> dict[str, dict[str, NDArray[np.float32]]]:
    rng = np.random.default_rng(0)
    return {
        part: {key.format(first + i): rng.normal(size=(4 + i, 3, 8)).astype(np.float32) for i in (1, 0, 2)}
        for part, first in (("train", 0), ("val", 10000))
    }


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_slots_whose_axes_were_exchanged(tmp_path: Path, protocol: int) -> None:
    data = slots("{}_pixels.mp4")
    value = np.random.default_rng(0).normal(size=data["train"]["0_pixels.mp4"].shape).astype(np.float32)
    data["train"]["0_pixels.mp4"] = np.ascontiguousarray(value.transpose(1, 0, 2)).transpose(1, 0, 2)
    (tmp_path / "slots.pkl").write_bytes(pickle.dumps(data, protocol=protocol))
    run(tmp_path / "slots.pkl", tmp_path / "slots")
    np.testing.assert_allclose(np.load(tmp_path / "slots/slots.npy")[: len(value)], value, atol=2e-3)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("key", ["{}_pixels.mp4", "video_{:05d}.mp4"])
def test_slots_there_and_back(tmp_path: Path, key: str, protocol: int) -> None:
    data = slots(key)
    (tmp_path / "slots.pkl").write_bytes(pickle.dumps(data, protocol=protocol))
    assert "slots of 6 videos, 3 x 8" in run(tmp_path / "slots.pkl", tmp_path / "slots")
    rows = np.load(tmp_path / "slots/slots.npy")
    np.testing.assert_array_equal(rows[:4], data["train"][key.format(0)])
    run(tmp_path / "slots", tmp_path / "again.pkl")
    again = pickle.loads((tmp_path / "again.pkl").read_bytes())
    assert {part: sorted(videos) for part, videos in data.items()} == {p: sorted(v) for p, v in again.items()}
    assert type(again) is dict and type(again["val"]) is dict
    for part, videos in data.items():
        for name, value in videos.items():
            np.testing.assert_array_equal(again[part][name], value)


@pytest.mark.parametrize("key", ["{}_pixels.mp4", "video_{:05d}.mp4"])
def test_clevrer_slots_there_and_back(tmp_path: Path, key: str) -> None:
    rng = np.random.default_rng(0)
    scenes = {"train": (3, 0), "val": (10000, 10001), "test": (15000,)}
    data = {
        part: {key.format(n): rng.normal(size=(6, 3, 8)).astype(np.float32) for n in numbers}
        for part, numbers in scenes.items()
    }
    (tmp_path / "slots.pkl").write_bytes(pickle.dumps(data))
    assert "5 CLEVRER videos of 6 frames" in run(tmp_path / "slots.pkl", tmp_path / "slots")
    read = VideoSlots(tmp_path / "slots")
    assert read.scenes == [0, 3, 10000, 10001, 15000]
    np.testing.assert_array_equal(read.read(10001), data["val"][key.format(10001)])
    run(tmp_path / "slots", tmp_path / "again.pkl")
    again = pickle.loads((tmp_path / "again.pkl").read_bytes())
    assert list(again) == list(data)
    for part, videos in data.items():
        assert sorted(again[part]) == sorted(videos)
        for name, value in videos.items():
            np.testing.assert_array_equal(again[part][name], value)


def test_slots_keep_the_encoder_they_are_given(tmp_path: Path) -> None:
    torch.save({"state_dict": stosavi(slots=3)}, tmp_path / "savi.pth")
    run(tmp_path / "savi.pth", tmp_path / "encoder")
    wide = {part: {key: np.zeros((4, 3, DIM), np.float32) for key in videos} for part, videos in slots().items()}
    (tmp_path / "slots.pkl").write_bytes(pickle.dumps(wide))
    run(tmp_path / "slots.pkl", tmp_path / "slots", encoder=str(tmp_path / "encoder"))
    torch.save(predictor(rows=16), tmp_path / "predictor.ckpt")
    run(tmp_path / "predictor.ckpt", tmp_path / "weights", encoder=str(tmp_path / "encoder"))
    run(tmp_path / "slots.pkl", tmp_path / "by_checkpoint", encoder=str(tmp_path / "weights"))
    model = Checkpoint.from_pretrained(tmp_path / "weights").model
    assert all(SlotAutoencoder.load(tmp_path / name).is_of(model) for name in ("slots", "by_checkpoint"))
    (tmp_path / "slots.pkl").write_bytes(pickle.dumps(slots()))
    with pytest.raises(ValueError, match=r"holds slots \(3, 8\), the encoder"):
        run(tmp_path / "slots.pkl", tmp_path / "out", encoder=str(tmp_path / "encoder"))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_memory_that_reading_takes(tmp_path: Path, protocol: int) -> None:
    """Slots of the published shape, converted there and back; 14 MB stand for 10 GB."""
    rng = np.random.default_rng(0)
    source = tmp_path / "slots.pkl"
    with source.open("wb") as file:
        videos = {f"{i}_pixels.mp4": rng.normal(size=(128, 7, 128)).astype(np.float32) for i in range(30)}
        pickle.dump({"train": videos}, file, protocol)
    size = source.stat().st_size
    del videos
    tracemalloc.start()
    run(source, tmp_path / "slots")
    run(tmp_path / "slots", tmp_path / "again.pkl")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    needed = memory_needed(source)
    assert needed == (2 * size if protocol == 2 else 0)
    assert peak < needed + size / 5, f"{peak / size:.2f} times the file"


def test_formats_that_take_memory_say_so(tmp_path: Path, capfd: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("cjepa_agent.convert.LARGE", 100)
    for protocol in (4, 2):
        (tmp_path / "slots.pkl").write_bytes(pickle.dumps(slots(), protocol))
        run(tmp_path / "slots.pkl", tmp_path / f"out{protocol}")
        assert ("GB of memory" in capfd.readouterr().err) == (protocol == 2)


def test_large_arrays_stay_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "slots.pkl").write_bytes(pickle.dumps({"train": {"0_pixels.mp4": np.ones((128, 7, 128), np.float32)}}))
    read = read_pickle(tmp_path / "slots.pkl")["train"]["0_pixels.mp4"]
    assert not read.flags.owndata and not read.flags.writeable and read.sum() == read.size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["val"].update({"clip.mp4": d["val"]["10000_pixels.mp4"]}), "the key 'clip.mp4'; expected"),
        (lambda d: d["val"].update({"7_pixels.mp4": np.zeros((4, 2, 8), np.float32)}), "slots of different shapes"),
        (lambda d: d.update(other=d.pop("val")), r"the parts \['other'\]; expected"),
        (lambda d: d["val"]["10000_pixels.mp4"].fill(np.nan), "slots of 10000_pixels.mp4 in val of .* hold NaN"),
        (lambda d: d["val"].update({"7_pixels.mp4": np.zeros((4, 8), np.float32)}), r"arrays of \[2, 3\] dimensions"),
        (lambda d: d["val"].update({"7_pixels.mp4": "text"}), "entries that are no tensors"),
        (lambda d: d["val"].update({"7_pixels.mp4": np.zeros((4, 3, 8), int)}), r"slots of type \['int64'\]"),
        (lambda d: d["val"].update({"7_pixels.mp4": np.full((4, 3, 8), 1e300)}), "too large for float32"),
        (lambda d: d["val"].update({"7_pixels.mp4": np.zeros((0, 3, 8))}), "got videos without frames"),
    ],
)
def test_wrong_slots(tmp_path: Path, change: Callable[[Any], object], message: str) -> None:
    data = slots()
    change(data)
    (tmp_path / "slots.pkl").write_bytes(pickle.dumps(data))
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "slots.pkl", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["slots.pkl"]


def meta(folder: Path) -> dict[str, Any]:
    """The three files beside the slots of the same videos."""
    rng, tables = np.random.default_rng(1), {}
    for column, width in (("action", 2), ("proprio", 4), ("state", 7)):
        tables[column] = {
            part: {key: rng.normal(size=(len(value), width)).astype(np.float32) for key, value in videos.items()}
            for part, videos in slots().items()
        }
        (folder / f"pusht_expert_{column}_meta.pkl").write_bytes(pickle.dumps(tables[column]))
    return tables


def test_slots_and_meta_files_train_together(tmp_path: Path) -> None:
    tables = meta(tmp_path)
    (tmp_path / "slots.pkl").write_bytes(pickle.dumps(slots()))
    run(tmp_path / "slots.pkl", tmp_path / "slots")
    run(tmp_path / "pusht_expert_action_meta.pkl", tmp_path / "episodes")
    data = SlotData(EpisodeFile(tmp_path / "episodes/episodes.h5"), tmp_path / "slots")
    assert data.done("train").tolist() == [0, 1, 2] and data.done("validation").tolist() == [3, 4, 5]
    latent, blocks = data.windows(data.window_starts("validation", 2, 2)[:1], 2, 2)
    first = slots()["val"]["10000_pixels.mp4"]
    torch.testing.assert_close(latent.slots[0], torch.from_numpy(first[[0, 2]]))
    actions = tables["action"]["val"]["10000_pixels.mp4"]
    torch.testing.assert_close(blocks[0, 0], torch.from_numpy(actions[:2].reshape(-1)))


def test_the_released_architecture_trains_on_pusht(tmp_path: Path) -> None:
    """The documented commands: on from a converted predictor, beside the authors' slots and meta files."""
    lengths = {"train": {"0_pixels.mp4": 40, "1_pixels.mp4": 44}, "val": {"0_pixels.mp4": 41}}
    rng = np.random.default_rng(0)
    widths = {"slots": (4, DIM), "pusht_expert_action_meta": (2,), "pusht_expert_proprio_meta": (4,)}
    for name, width in widths.items():
        table = {
            part: {key: rng.normal(size=(length, *width)).astype(np.float32) for key, length in videos.items()}
            for part, videos in lengths.items()
        }
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps(table))
    torch.manual_seed(0)
    torch.save(predictor() | embedders(), tmp_path / "predictor.ckpt")
    run(tmp_path / "predictor.ckpt", tmp_path / "weights")
    run(tmp_path / "slots.pkl", tmp_path / "slots")
    run(tmp_path / "pusht_expert_action_meta.pkl", tmp_path / "meta")

    def train(*more: str, expect: int = 0) -> str:
        arguments = ["predictor=released", "dynamics=released", "trainer=released", "mask.kind=fixed", "mask.count=1"]
        arguments += ["data=meta/episodes.h5", "slots=slots", "trainer.steps=2", "trainer.batch=4"]
        arguments += ["trainer.precision=32-true", f"predictor.width={DIM}", "predictor.heads=4", "predictor.mlp=48"]
        return run_command("cjepa_agent.train", *arguments, *more, folder=tmp_path, expect=expect).stderr

    train("predictor.depth=2", "init=weights", "out=tuned", "trainer.lr=1e-12", "trainer.weight_decay=0")
    start = Checkpoint.from_pretrained(tmp_path / "weights").model.state_dict()
    tuned = Checkpoint.from_pretrained(tmp_path / "tuned/checkpoint").model
    for name, tensor in tuned.state_dict().items():
        torch.testing.assert_close(tensor, start[name], rtol=0, atol=1e-8)
    assert tuned.config.roles == {} and tuned.config.action_block == 5
    assert "init has the predictor" in train("predictor.depth=1", "init=weights", "out=other", expect=2)


def test_incomplete_meta_files(tmp_path: Path) -> None:
    meta(tmp_path)
    (tmp_path / "pusht_expert_proprio_meta.pkl").unlink()
    with pytest.raises(FileNotFoundError, match="proprio_meta"):
        run(tmp_path / "pusht_expert_action_meta.pkl", tmp_path / "out")
    other = {"train": {"5_pixels.mp4": np.zeros((3, 4), np.float32)}}
    (tmp_path / "pusht_expert_proprio_meta.pkl").write_bytes(pickle.dumps(other))
    with pytest.raises(ValueError, match="other videos"):
        run(tmp_path / "pusht_expert_action_meta.pkl", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten_and_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="exists already"):
        run(tmp_path / "none.ckpt", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt"):
        run(tmp_path / "none.ckpt", tmp_path / "new")


def test_an_array_alone_is_named(tmp_path: Path) -> None:
    (tmp_path / "array.pkl").write_bytes(pickle.dumps(np.zeros((2, 3), np.float32)))
    with pytest.raises(ValueError, match=r"array\.pkl"):
        run(tmp_path / "array.pkl", tmp_path / "out")


@pytest.mark.parametrize(("columns", "message"), [((1, 4), "actions of 1"), ((2, 3), "proprioception of 3")])
def test_normalisation_of_other_columns_is_refused(tmp_path: Path, columns: tuple[int, int], message: str) -> None:
    action, proprio = (np.zeros((6, width), np.float32) for width in columns)
    write_episodes(
        tmp_path / "data.h5", [{"pixels": np.zeros((6, 8, 8, 3), np.uint8), "action": action, "proprio": proprio}]
    )
    torch.save(world_model(), tmp_path / "source.ckpt")
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "source.ckpt", tmp_path / "out", n_slots=4, data=str(tmp_path / "data.h5"))
    assert not (tmp_path / "out").exists()


def test_command(tmp_path: Path) -> None:
    (tmp_path / "a (1), b=c.pkl").write_bytes(pickle.dumps(slots()))
    command = ("cjepa_agent.convert", "a (1), b=c.pkl", "out")
    assert "slots of 6 videos" in run_command(*command, folder=tmp_path).stdout
    again = run_command(*command, folder=tmp_path, expect=2)
    assert again.stderr.startswith("FileExistsError") and again.stderr.count("\n") == 1
