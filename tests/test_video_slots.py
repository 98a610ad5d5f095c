"""Slots of videos on disk."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cjepa_agent.data.video_slots import SlotsWriter, VideoSlots

IDENTITY = {"dataset": "small", "encoder": "abc"}
SCENES = [3, 7, 10000]


def slots(count: int = 3) -> list[Tensor]:
    return list(torch.randn(count, 5, 2, 4, generator=torch.Generator().manual_seed(0)).half().float())


def test_round_trip_by_scene(tmp_path: Path) -> None:
    VideoSlots.write(tmp_path, IDENTITY, SCENES, (5, 2, 4), slots())
    read = VideoSlots(tmp_path)
    assert read.frames == 5 and read.scenes == SCENES and read.identity == IDENTITY
    assert torch.equal(read.read(10000), slots()[2])
    with pytest.raises(KeyError, match="no slots of scene 4"):
        read.read(4)


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path) -> None:
    def broken() -> object:
        yield slots()[0]
        yield slots()[1]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        VideoSlots.write(tmp_path, IDENTITY, SCENES, (5, 2, 4), broken(), every=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has 2 of 3 videos"):
        VideoSlots(tmp_path)
    done = VideoSlots.finished(tmp_path, IDENTITY, SCENES)
    VideoSlots.write(tmp_path, IDENTITY, SCENES, (5, 2, 4), slots()[done:])
    assert np.array_equal(VideoSlots(tmp_path).array, torch.stack(slots()).half().numpy())


def test_a_writer_goes_on_after_the_videos_that_are_there(tmp_path: Path) -> None:
    first = SlotsWriter(tmp_path, IDENTITY, SCENES, (5, 2, 4), np.float16)
    first.append(slots()[:2])
    with pytest.raises(ValueError, match="slots of scene 10000 are"):
        first.append([slots()[2][:4]])
    again = SlotsWriter(tmp_path, IDENTITY, SCENES, (5, 2, 4), np.float16)
    assert again.done == first.done == 2
    again.append(slots()[2:])
    assert np.array_equal(VideoSlots(tmp_path).array, torch.stack(slots()).half().numpy())


def test_other_slots_are_not_overwritten(tmp_path: Path) -> None:
    VideoSlots.write(tmp_path, IDENTITY, SCENES, (5, 2, 4), slots())
    with pytest.raises(ValueError, match="choose another out="):
        VideoSlots.write(tmp_path, {**IDENTITY, "encoder": "other"}, SCENES, (5, 2, 4), slots())
    with pytest.raises(ValueError, match=r"holds slots \(T, S, D\) \(5, 2, 4\), these are \(9, 2, 4\); choose another"):
        VideoSlots.write(tmp_path, IDENTITY, SCENES, (9, 2, 4), slots())


def test_bad_slots_and_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no slots in"):
        VideoSlots(tmp_path)
    with pytest.raises(ValueError, match="scene 3 are"):
        VideoSlots.write(tmp_path / "wide", IDENTITY, SCENES, (5, 2, 3), slots())
    with pytest.raises(ValueError, match="NaN or numbers too large for float16"):
        VideoSlots.write(tmp_path / "nan", IDENTITY, SCENES, (5, 2, 4), [slots()[0] * float("nan")])
    with pytest.raises(ValueError, match="NaN or numbers too large for float16"):
        VideoSlots.write(tmp_path / "large", IDENTITY, SCENES, (5, 2, 4), [torch.full((5, 2, 4), 7e4)])
    VideoSlots.write(tmp_path, IDENTITY, SCENES, (5, 2, 4), slots())
    (tmp_path / "slots.npy").write_bytes((tmp_path / "slots.npy").read_bytes()[:100])
    with pytest.raises(ValueError, match="slots.npy is truncated"):
        VideoSlots(tmp_path)
    with pytest.raises(ValueError, match="slots.npy is truncated"):
        VideoSlots.finished(tmp_path, IDENTITY, SCENES)
