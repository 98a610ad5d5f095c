"""Dataset folders of stable-worldmodel, written here with the documented names, as episode files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cjepa_agent.convert import ConvertConfig, convert
from cjepa_agent.data.episode_folders import _numbers
from cjepa_agent.data.episodes import EpisodeFile
from envs.clevrer.video import encode_video

LENGTHS = (5, 3, 4)
ROWS = sum(LENGTHS)
FIRST = np.cumsum(LENGTHS) - LENGTHS


def episode_frames(index: int) -> NDArray[np.uint8]:
    """Frames of one brightness each, which compression keeps: 40 for each episode and 10 for each step."""
    levels = 40 * index + 10 * np.arange(LENGTHS[index]) + 20
    return np.broadcast_to(levels[:, None, None, None], (LENGTHS[index], 32, 32, 3)).astype(np.uint8)


def columns() -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    widths = {"action": 2, "proprio": 4, "state": 7}
    return {name: rng.normal(size=(ROWS, width)).astype(np.float32) for name, width in widths.items()}


def write_pictures(folder: Path, name: Callable[[int, int], str]) -> None:
    for index in range(len(LENGTHS)):
        for step, frame in enumerate(episode_frames(index)):
            path = folder / name(index, step)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(frame).save(path, quality=95)


def write_videos(folder: Path, name: Callable[[int], str]) -> None:
    for index in range(len(LENGTHS)):
        path = folder / name(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_video(episode_frames(index)))


def write_tables(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, table in columns().items():
        np.savez(folder / f"{name}.npz", table)
    np.savez(folder / "ep_len.npz", np.array(LENGTHS, np.int32))
    np.savez(folder / "ep_offset.npz", FIRST.astype(np.int64))
    np.savez(folder / "ep_idx.npz", np.repeat(np.arange(3), LENGTHS))


def write_arrow(folder: Path, pixels: Callable[[int, int], str], order: NDArray[np.int64] | None = None) -> None:
    """As Hugging Face's ``save_to_disk`` writes a row per step, in two shards."""
    pyarrow = pytest.importorskip("pyarrow")
    episode, step = np.repeat(np.arange(3), LENGTHS), np.concatenate([np.arange(n) for n in LENGTHS])
    order = np.arange(ROWS) if order is None else order
    table = pyarrow.table(
        {
            "episode_idx": episode[order],
            "step_idx": step[order],
            "episode_len": np.repeat(LENGTHS, LENGTHS)[order],
            "pixels": [pixels(int(episode[i]), int(step[i])) for i in order],
            "task": ["push"] * len(order),
            **{name: list(values[order]) for name, values in columns().items()},
        }
    )
    folder.mkdir(exist_ok=True)
    for shard, part in enumerate((table.slice(0, 5), table.slice(5))):
        with pyarrow.ipc.new_stream(str(folder / f"data-0000{shard}-of-00002.arrow"), table.schema) as stream:
            stream.write_table(part)


def check(folder: Path, out: Path) -> str:
    said = convert(ConvertConfig(str(folder), str(out)))
    data = EpisodeFile(out / "episodes.h5")
    assert data.lengths.tolist() == list(LENGTHS)
    for name, table in columns().items():
        np.testing.assert_allclose(data.read_all(name), table, rtol=1e-6)
    for index in range(3):
        frames = data.read("pixels", index)
        assert frames.shape == (LENGTHS[index], 32, 32, 3)
        assert np.abs(frames.astype(int) - episode_frames(index)).max() < 5
    return said


def test_videos_beside_tables(tmp_path: Path) -> None:
    write_tables(tmp_path / "swm")
    write_videos(tmp_path / "swm", "video/ep_{}.mp4".format)
    np.savez(tmp_path / "swm/task.npz", np.array(["push"] * ROWS))
    assert "3 episodes: action, pixels, proprio, state, without task" in check(tmp_path / "swm", tmp_path / "out")


def test_pictures_beside_tables(tmp_path: Path) -> None:
    write_tables(tmp_path / "swm")
    (tmp_path / "swm/.cache/huggingface").mkdir(parents=True)  # as `hf download --local-dir` leaves it
    write_pictures(tmp_path / "swm", "pixels/ep_{}_step_{}.jpeg".format)
    check(tmp_path / "swm", tmp_path / "out")


@pytest.mark.parametrize("shuffled", [False, True])
def test_arrow_tables_with_videos(tmp_path: Path, shuffled: bool) -> None:
    order = np.random.default_rng(1).permutation(ROWS) if shuffled else None
    write_arrow(tmp_path / "pusht_expert_train", lambda episode, _: f"videos/{episode}_pixels.mp4", order)
    write_videos(tmp_path / "pusht_expert_train", "videos/{}_pixels.mp4".format)
    assert "state, without task" in check(tmp_path / "pusht_expert_train", tmp_path / "out")


def test_arrow_tables_with_pictures(tmp_path: Path) -> None:
    write_arrow(tmp_path / "swm", "img/{}_{}_pixels.jpeg".format)
    write_pictures(tmp_path / "swm", "img/{}_{}_pixels.jpeg".format)
    check(tmp_path / "swm", tmp_path / "out")


def shorten(folder: Path) -> None:
    (folder / "video/ep_1.mp4").write_bytes(encode_video(episode_frames(0)))


def truncate(folder: Path) -> None:
    path = folder / "state.npz"
    path.write_bytes(path.read_bytes()[:40])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "action.npz").unlink(), r"has no actions; it has \['proprio', 'state', 'video'\]"),
        (
            lambda folder: np.savez(folder / "state.npz", np.zeros((4, 7))),
            r"12 steps in all, but columns have {'state'",
        ),
        (lambda folder: (folder / "video/ep_2.mp4").write_bytes(b"none"), r"ep_2\.mp4: broken video"),
        (lambda folder: (folder / "video/ep_2.mp4").unlink(), r"ep_2\.mp4"),
        (lambda folder: np.savez(folder / "action.npz", np.array([{}] * ROWS)), r"action\.npz is truncated or not a"),
        (shorten, r"ep_1\.mp4 has 5 frames, its episode 3 steps"),
        (truncate, r"state\.npz is truncated or not a table"),
        (lambda folder: np.savez(folder / "ep_len.npz", [5.5, 3.0, 3.5]), "must hold one whole number per episode"),
        (lambda folder: np.savez(folder / "ep_len.npz", [[5], [3], [4]]), "must hold one whole number per episode"),
        (lambda folder: np.savez(folder / "ep_len.npz", [8, 0, 4]), "has episodes without steps"),
        (lambda folder: np.savez(folder / "state.npz", 7.0), r"columns have {'state': \(\)}"),
    ],
)
def test_broken_folders(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    write_tables(tmp_path / "swm")
    write_videos(tmp_path / "swm", "video/ep_{}.mp4".format)
    spoil(tmp_path / "swm")
    with pytest.raises(ValueError, match=message):
        convert(ConvertConfig(str(tmp_path / "swm"), str(tmp_path / "out")))
    assert [path.name for path in tmp_path.iterdir()] == ["swm"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("../secret.mp4", "refers to '../secret.mp4', which is not in it"), ("videos/0.mp4", r"0\.mp4: broken video")],
)
def test_arrow_tables_that_name_other_files(tmp_path: Path, name: str, message: str) -> None:
    write_arrow(tmp_path / "swm", lambda *_: name)
    with pytest.raises(ValueError, match=message):
        convert(ConvertConfig(str(tmp_path / "swm"), str(tmp_path / "out")))


def test_lists_of_different_lengths_are_refused() -> None:
    pyarrow = pytest.importorskip("pyarrow")
    for rows in ([[1, 2], [3], [4, 5, 6]], [[1, 2], None, [3, 4]]):
        with pytest.raises(ValueError, match="lists of different lengths"):
            _numbers(pyarrow.chunked_array([rows]))


def test_broken_arrow_tables(tmp_path: Path) -> None:
    write_arrow(tmp_path / "swm", lambda *_: "x.mp4", order=np.arange(1, ROWS))
    with pytest.raises(ValueError, match="lacks steps of some episodes"):
        convert(ConvertConfig(str(tmp_path / "swm"), str(tmp_path / "out")))
    shard = next((tmp_path / "swm").glob("*.arrow"))
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ValueError, match="truncated or not an Arrow stream"):
        convert(ConvertConfig(str(tmp_path / "swm"), str(tmp_path / "out")))


def test_what_is_needed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "swm").mkdir()
    (tmp_path / "swm/data-00000-of-00001.arrow").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"pip install pyarrow"):
        convert(ConvertConfig(str(tmp_path / "swm"), str(tmp_path / "out")))
    (tmp_path / "table.lance").mkdir()
    with pytest.raises(ValueError, match="none of the folders known here.*LanceDB.*swm convert"):
        convert(ConvertConfig(str(tmp_path / "table.lance"), str(tmp_path / "out")))
