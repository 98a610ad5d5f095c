"""The encoder for a camera that stands still, on frames of coloured squares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cjepa_agent.autoencoder import SlotAutoencoder
from cjepa_agent.collecting.clevrer import CLEVRERCollection
from cjepa_agent.collecting.collection import collect
from cjepa_agent.data import EpisodeFile
from cjepa_agent.encoder import centroid_of, grid_coordinates
from cjepa_agent.evaluation import segmentation
from cjepa_agent.evaluation.config import EvaluateConfig
from cjepa_agent.extract import ExtractConfig, extract, load_encoder
from cjepa_agent.files import read_json, write_json
from cjepa_agent.still_camera import StillCameraConfig, holding
from cjepa_agent.training.objectives import SlotTrainingConfig, StillCameraObjective
from envs.clevrer import sample_scene, simulate
from envs.clevrer.render import CLEVRERRenderer

TINY = StillCameraConfig(n_slots=4, slot_dim=32, image_size=32, width=16, decoder_width=16, far=5.0, near=5.0)
BACKGROUND = np.tile(np.linspace(90, 150, 32).astype(np.uint8)[:, None, None], (1, 32, 3))
COLOURS = [(255, 0, 0), (0, 0, 255), (255, 0, 0)]


def frame(*places: tuple[int, int] | None, colours: Sequence[Sequence[int]] = COLOURS) -> NDArray[np.uint8]:
    """Squares of 5 px about (x, y) on the background."""
    picture = BACKGROUND.copy()
    for place, colour in zip(places, colours, strict=False):
        if place:
            x, y = place
            picture[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3] = colour
    return picture


def pixels(slots: torch.Tensor) -> torch.Tensor:
    """Centroids in pixels, counted from 0."""
    return (centroid_of(slots) + 1) * 16 - 0.5


def random_frames(rng: np.random.Generator, count: int) -> NDArray[np.uint8]:
    cells = [(x, y) for x in (5, 13, 21, 28) for y in (5, 13, 21, 28)]
    chosen = [rng.permutation(len(cells))[: rng.integers(0, 4)] for _ in range(count)]
    shift, paint = rng.integers(-1, 2, (count, 2)), np.array([(255, 0, 0), (0, 0, 255), (0, 200, 0), (230, 230, 0)])
    return np.stack(
        [
            frame(*((cells[c][0] + x, cells[c][1] + y) for c in own), colours=paint[rng.integers(4, size=len(own))])
            for own, (x, y) in zip(chosen, shift, strict=True)
        ]
    )


@pytest.fixture(scope="module")
def trained() -> StillCameraObjective:
    """Trained for some seconds."""
    torch.manual_seed(0)
    model = StillCameraObjective(TINY, SlotTrainingConfig(points=200, uniform=60))
    frames = random_frames(np.random.default_rng(0), 600)
    model.prepare(frames)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    generator = torch.Generator().manual_seed(0)
    clips = torch.from_numpy(frames).permute(0, 3, 1, 2)[:, None].float() / 255
    for _ in range(400):
        batch = clips[torch.randint(len(clips), (16,), generator=generator)]
        optimizer.zero_grad()
        model(batch, model.draw(batch, generator))["total"].backward()
        optimizer.step()
    return model.eval()


def test_the_background_is_the_median_of_the_training_frames(trained: StillCameraObjective) -> None:
    for part in (trained.encoder, trained.decoder):
        assert torch.allclose(part.background.permute(1, 2, 0) * 255, torch.from_numpy(BACKGROUND).float(), atol=1e-3)


@torch.no_grad()
def test_where_nothing_is_slots_are_empty_and_the_background_is_painted(trained: StillCameraObjective) -> None:
    slots = trained.encoder.read(torch.from_numpy(frame())[None])
    assert not slots[:, 1:].any() and slots[:, 0].any()
    painted, masks = trained.decoder.paint(slots, grid_coordinates(32)[None])
    assert torch.allclose(painted.view(32, 32, 3) * 255, torch.from_numpy(BACKGROUND).float(), atol=0.5)
    assert torch.allclose(masks[:, 0], torch.ones(1, 32 * 32))


@torch.no_grad()
def test_things_of_one_colour_have_a_slot_each(trained: StillCameraObjective) -> None:
    places = [(6, 7), (24, 9), (15, 25)]
    slots = trained.encoder.read(torch.from_numpy(frame(*places))[None])
    found = pixels(slots[0, 1:])
    nearest = [int((found - torch.tensor(place)).norm(dim=-1).argmin()) for place in places]
    assert sorted(nearest) == [0, 1, 2]
    for place, slot in zip(places, nearest, strict=True):
        assert (found[slot] - torch.tensor(place)).norm() < 1.5
    painted, _ = trained.decoder.paint(slots, grid_coordinates(32)[None])
    truth = torch.from_numpy(frame(*places)).float() / 255
    before = (torch.from_numpy(BACKGROUND).float() / 255 - truth).square().mean()
    assert (painted.view(32, 32, 3) - truth).square().mean() < 0.2 * before


@torch.no_grad()
def test_a_slot_keeps_its_thing_and_others_enter_and_leave(trained: StillCameraObjective) -> None:
    def at(time: int) -> NDArray[np.uint8]:
        entered = (33 - time, 26) if time >= 4 else None
        return frame((4 + time, 6), (28 - time, 15), entered)

    slots = trained.encoder.track(torch.from_numpy(np.stack([at(time) for time in range(22)])))
    found, there = pixels(slots), holding(slots)
    first = [int((found[0] - torch.tensor(place)).norm(dim=-1)[1:].argmin()) + 1 for place in ((4, 6), (28, 15))]
    for time in range(22):
        for slot, place in zip(first, ((4 + time, 6), (28 - time, 15)), strict=True):
            assert (found[time, slot] - torch.tensor(place)).norm() < 2, (time, slot)
    (third,) = {1, 2, 3} - set(first)
    assert not there[:3, third].any() and there[8:, third].all()
    gone = trained.encoder.read(torch.from_numpy(frame((25, 6)))[None], slots[-1:])
    assert holding(gone)[0].tolist() == [slot in (0, first[0]) for slot in range(4)]


@torch.no_grad()
def test_round_trip(trained: StillCameraObjective, tmp_path: Path) -> None:
    trained.save(tmp_path)
    loaded = SlotAutoencoder.load(tmp_path)
    scene = torch.from_numpy(frame((6, 7), (24, 9)))[None]
    assert torch.equal(loaded.encoder.read(scene), trained.encoder.read(scene))


@pytest.mark.parametrize("wrong", [{"n_slots": 1}, {"image_size": 30}, {"slot_dim": 12}, {"far": 0.0}])
def test_sizes_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="encoder"):
        replace(TINY, **wrong)


# ------------------------------------------------------------------------------------------------ task=segmentation


def test_segmentation_of_a_data_set(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    collect(CLEVRERCollection(out=data, videos=3, workers=1))
    model = StillCameraObjective(StillCameraConfig(), SlotTrainingConfig())
    model.prepare(np.concatenate([EpisodeFile(data / "frames.h5").read("pixels", episode) for episode in range(3)]))
    model.save(tmp_path / "encoder")
    write_json(tmp_path / "encoder/recipe.json", {})
    extract(ExtractConfig(data=data, encoder=tmp_path / "encoder", out=tmp_path / "slots"))
    config = EvaluateConfig(
        "segmentation", slots=str(tmp_path / "slots"), data=str(data), split="validation", out=str(out)
    )
    assert "FG-ARI, video" in segmentation.run(config)
    measures = read_json(out / "segmentation.json")["measures"]
    # Slots start where things are, so that even an untrained attention parts them by place; it paints nothing yet.
    assert all(-1 <= row["low"] <= row["mean"] <= row["high"] <= 1 for row in measures.values())
    assert iio.imread(out / "segmentation.png").shape == (3 * 64 * 2, 8 * 64 * 2, 3)
    with pytest.raises(ValueError, match="no scene of split"):
        segmentation.run(replace(config, split="other"))


@torch.no_grad()
def test_the_bundled_encoder_gives_objects_of_new_scenes_a_slot_each() -> None:
    autoencoder, recipe = load_encoder(Path("clevrer"))
    assert recipe["command"]["encoder"]["kind"] == "still"
    renderer, rng, scores = CLEVRERRenderer(64, 64), np.random.default_rng(5), []
    for _ in range(3):
        trajectory = simulate(sample_scene(rng), frames=64)
        frames, truth = zip(*(renderer.draw(trajectory, frame) for frame in range(64)), strict=True)
        slots = autoencoder.encoder.track(torch.from_numpy(np.stack(frames)))
        _, masks = autoencoder.decoder.paint(slots[::16], grid_coordinates(64).expand(4, -1, -1))
        found = masks.argmax(1).view(-1, 64, 64).numpy()
        scores += [segmentation._ari(one, other) for one, other in zip(truth[::16], found, strict=True) if one.any()]
    assert np.mean(scores) > 0.8


def test_a_slot_that_changes_its_object_counts_in_the_video_alone() -> None:
    truth = np.zeros((2, 4, 4), np.uint8)
    truth[:, :2, :2], truth[:, 2:, 2:] = 1, 2
    swapped = np.stack([truth[0], np.array([0, 2, 1])[truth[1]]]).astype(np.int64)
    video = segmentation.Segmented(truth, swapped, np.zeros((2, 4, 4, 3), np.uint8))
    assert [segmentation._ari(*frame) for frame in video.frames] == [1.0, 1.0]
    assert segmentation._ari(truth, truth.astype(np.int64)) == 1.0 > segmentation._ari(truth, swapped)
