"""Episode files: ours, stable-worldmodel's, and broken ones."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from cjepa_agent.data.episodes import SPLITS, EpisodeFile, split_episodes, write_episodes

LENGTHS = (7, 3, 5, 4, 6)
Columns = dict[str, NDArray[Any]]


def make_episode(length: int, seed: int = 0, size: int = 8) -> Columns:
    rng = np.random.default_rng(seed)
    return {
        "pixels": rng.integers(0, 256, (length, size, size, 3), dtype=np.uint8),
        "action": rng.uniform(-1, 1, (length, 2)).astype(np.float32),
        "proprio": rng.uniform(0, 512, (length, 4)).astype(np.float32),
        "state": rng.uniform(0, 512, (length, 7)),
    }


EPISODES = [make_episode(length, seed) for seed, length in enumerate(LENGTHS)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A small file of ours."""
    path = tmp_path / "episodes.h5"
    write_episodes(path, EPISODES, {"seed": 3})
    return path


def write_foreign(path: Path, size: int = 224, **changes: Any) -> Columns:
    """A file as stable-worldmodel writes it; returns its columns.

    Columns have one row per chunk and other types than ours, the last action of each episode is missing, and there
    is no split. ``changes`` replace columns; None leaves one out.
    """
    episodes = [make_episode(length, seed, size) for seed, length in enumerate(LENGTHS)]
    columns: Columns = {name: np.concatenate([episode[name] for episode in episodes]) for name in episodes[0]}
    ends = np.cumsum(LENGTHS)
    columns["action"] = columns["action"].astype(np.float64)
    columns["action"][ends - 1] = np.nan
    columns["state"] = columns["state"].astype(np.float32)
    columns["ep_len"] = np.array(LENGTHS, dtype=np.int32)
    columns["ep_offset"] = ends - LENGTHS
    columns["ep_idx"] = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    columns["step_idx"] = np.concatenate([np.arange(length) for length in LENGTHS])
    columns.update(changes)
    with h5py.File(path, "w", libver="latest") as file:
        for name, column in columns.items():
            if column is not None:
                file.create_dataset(name, data=column, chunks=(1, *column.shape[1:]))
    return columns


def test_what_is_written_is_read(path: Path) -> None:
    data = EpisodeFile(path)
    assert len(data) == len(EPISODES)
    assert data.attrs == {"seed": 3}
    for index, episode in enumerate(EPISODES):
        for name, column in episode.items():
            rows = data.read(name, index)
            assert rows.dtype == column.dtype
            assert np.array_equal(rows, column)
    assert np.array_equal(data.read("state", 2, 1, 3), EPISODES[2]["state"][1:3])
    assert data.read("action", 1, 3, 3).shape == (0, 2)
    assert np.array_equal(data.read_all("action"), np.concatenate([episode["action"] for episode in EPISODES]))


def test_stable_worldmodel_finds_one_row_per_step_in_every_column(path: Path) -> None:
    with h5py.File(path, "r", swmr=True) as file:  # as its reader opens files
        assert {len(file[name]) for name in set(file) - {"ep_len", "ep_offset"}} == {sum(LENGTHS)}


@pytest.mark.parametrize("n_episodes", [3, 10, 100, 2000])
def test_splits_are_disjoint_complete_and_deterministic(n_episodes: int) -> None:
    split = split_episodes(n_episodes)
    assert split.shape == (n_episodes,)
    assert set(split.tolist()) == {0, 1, 2}
    held_out = max(1, round(0.05 * n_episodes))
    assert np.bincount(split).tolist() == [n_episodes - 2 * held_out, held_out, held_out]
    assert np.array_equal(split_episodes(n_episodes + 7)[:n_episodes], split), "a longer collection keeps the split"


def test_the_file_knows_its_splits(path: Path) -> None:
    data = EpisodeFile(path)
    parts = [data.episodes(split) for split in SPLITS]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(LENGTHS)))
    assert data.episodes("all").tolist() == list(range(len(LENGTHS)))
    assert np.array_equal(data.split, split_episodes(len(LENGTHS)))


def test_two_episodes_cannot_be_split_but_read(tmp_path: Path) -> None:
    write_episodes(tmp_path / "two.h5", EPISODES[:2])
    data = EpisodeFile(tmp_path / "two.h5")
    assert np.array_equal(data.read("state", 1), EPISODES[1]["state"])
    with pytest.raises(ValueError, match="at least 3 episodes"):
        data.episodes("train")


def test_an_open_file_can_be_pickled(path: Path) -> None:
    data = EpisodeFile(path)
    data.read("state", 0)
    assert np.array_equal(pickle.loads(pickle.dumps(data)).read("state", 1), EPISODES[1]["state"])


def test_a_file_of_stable_worldmodel(tmp_path: Path) -> None:
    path = tmp_path / "pusht_expert_train.h5"
    columns = write_foreign(path)
    data = EpisodeFile(path)
    assert data.lengths.tolist() == list(LENGTHS)
    assert data.read("pixels", 1).shape == (LENGTHS[1], 224, 224, 3)
    assert data.read("step_idx", 4).tolist() == list(range(LENGTHS[4]))
    for name, kind in {"action": np.float32, "proprio": np.float32, "state": np.float64}.items():
        assert data.read(name, 0).dtype == data.read_all(name).dtype == kind
    assert np.array_equal(data.read_all("action"), np.nan_to_num(columns["action"]).astype(np.float32))
    assert np.array_equal(data.read("action", 0)[-1], [0, 0])
    assert np.array_equal(data.read("action", 0, 2, 5), columns["action"][2:5].astype(np.float32))
    assert sorted(np.concatenate([data.episodes(split) for split in SPLITS]).tolist()) == list(range(len(LENGTHS)))


def test_nan_among_taken_actions_is_refused(tmp_path: Path) -> None:
    action = make_episode(sum(LENGTHS))["action"]
    action[LENGTHS[0] + 1] = np.nan
    write_foreign(tmp_path / "nan.h5", size=8, action=action)
    data = EpisodeFile(tmp_path / "nan.h5")
    assert np.isfinite(data.read("action", 0)).all()
    with pytest.raises(ValueError, match="NaN among actions"):
        data.read("action", 1)
    with pytest.raises(ValueError, match="NaN among actions"):
        data.read_all("action")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action": None}, r"lacks the columns \['action'\]"),
        ({"ep_len": None, "ep_offset": None}, r"lacks the columns \['ep_len', 'ep_offset'\]"),
        ({"state": np.zeros((4, 7))}, r"adds up to 25 rows, but columns have {'state': \(4,\)}"),
        ({"ep_len": np.array([7, 3, 5, 4, 60])}, "adds up to 79 rows, but columns have"),
        ({"ep_offset": np.array([0, 3, 10, 15, 19])}, "do not lay the episodes one after another"),
        (
            {"action": np.zeros(25, np.float32)},
            r"action and proprio must be \(rows, numbers\), got {'action': \(25,\)}",
        ),
        ({"pixels": np.zeros((25, 3, 8, 8), np.uint8)}, r"pixels must be \(rows, H, W, 3\)"),
    ],
)
def test_files_whose_columns_do_not_fit_are_refused(tmp_path: Path, changes: Columns, message: str) -> None:
    write_foreign(tmp_path / "bad.h5", **{"size": 8, **changes})
    with pytest.raises(ValueError, match=message):
        EpisodeFile(tmp_path / "bad.h5")


def test_missing_foreign_and_truncated_files_are_refused(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="cjepa_agent.collect"):
        EpisodeFile(path.with_name("none.h5"))
    whole = path.read_bytes()
    for damaged in (b"", b"PK\x03\x04 not HDF5", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="not a readable HDF5 file"):
            EpisodeFile(path)


def test_damaged_rows_are_refused(path: Path) -> None:
    with h5py.File(path) as file:
        chunk = file["pixels"].id.get_chunk_info(0)
    with path.open("r+b") as raw:
        raw.seek(chunk.byte_offset)
        raw.write(b"\xff" * chunk.size)
    with pytest.raises(ValueError, match="cannot read 'pixels' of .*damaged"):
        EpisodeFile(path).read("pixels", 0)


def test_reading_what_is_not_there(path: Path) -> None:
    data = EpisodeFile(path)
    with pytest.raises(ValueError, match="no column 'reward'"):
        data.read("reward", 0)
    for episode, start, stop in ((0, 0, 8), (0, 3, 2), (5, 0, 1), (-1, 0, 1)):
        with pytest.raises(IndexError, match="of"):
            data.read("state", episode, start, stop)


def test_nothing_appears_when_writing_fails(tmp_path: Path) -> None:
    def failing() -> Iterator[Columns]:
        yield EPISODES[0]
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_episodes(tmp_path / "x.h5", failing())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("episodes", "message"),
    [
        ([], "no episodes"),
        ([make_episode(0)], "equally long and not empty"),
        ([{**EPISODES[0], "action": EPISODES[1]["action"]}], "equally long and not empty"),
        ([EPISODES[0], {"action": EPISODES[1]["action"]}], "same columns"),
        ([EPISODES[0], make_episode(3, size=9)], "rows of shape"),
        ([EPISODES[0], {**EPISODES[1], "action": EPISODES[1]["action"].astype(int)}], "give all episodes one dtype"),
        ([{**EPISODES[0], "action": EPISODES[0]["action"].astype(str)}], "must hold numbers, and pixels uint8"),
        ([{**EPISODES[0], "pixels": EPISODES[0]["pixels"] / 255}], "must hold numbers, and pixels uint8"),
        ([{**EPISODES[0], "action": np.float32(0)}], "equally long and not empty"),
        ([{**EPISODES[0], "ep_len": EPISODES[0]["action"]}], "'ep_len' and 'ep_offset' are made here"),
        ([{"pixels": EPISODES[0]["pixels"]}], "needs a column 'action'"),
    ],
)
def test_episodes_that_do_not_fit_are_not_written(tmp_path: Path, episodes: list[Columns], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_episodes(tmp_path / "x.h5", episodes)
    assert list(tmp_path.iterdir()) == []
