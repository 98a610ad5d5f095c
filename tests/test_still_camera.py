"""The encoder for a camera that stands still, on frames of coloured squares."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import avg_pool2d

from cjepa_agent.checkpoint import Checkpoint
from cjepa_agent.collecting.clevrer import CLEVRERCollection
from cjepa_agent.collecting.collection import collect
from cjepa_agent.data.episodes import EpisodeFile
from cjepa_agent.encoders.autoencoder import SlotAutoencoder
from cjepa_agent.encoders.base import centroid_of, grid_coordinates
from cjepa_agent.encoders.still_camera import APPEARANCE, GONE, Memory, StillCameraConfig, holding
from cjepa_agent.evaluation import segmentation
from cjepa_agent.evaluation.config import EvaluateConfig
from cjepa_agent.evaluation.probe import foreground_ari
from cjepa_agent.extract import ExtractConfig, extract, load_encoder
from cjepa_agent.files import read_json, write_json
from cjepa_agent.training.objectives import SlotTrainingConfig, StillCameraObjective
from cjepa_agent.video_prediction import continued
from envs.clevrer import sample_scene, simulate
from envs.clevrer.render import CLEVRERRenderer

TINY = StillCameraConfig(n_slots=4, slot_dim=32, image_size=32, width=16, decoder_width=16, far=10.0, near=10.0)
BACKGROUND = np.tile(np.linspace(90, 150, 32).astype(np.uint8)[:, None, None], (1, 32, 3))
COLOURS = [(255, 0, 0), (0, 0, 255), (255, 0, 0)]


def frame(*places: tuple[int, int] | None, colours: Sequence[Sequence[int]] = COLOURS) -> NDArray[np.uint8]:
    """Squares of 5 px about (x, y) on the background."""
    picture = BACKGROUND.copy()
    for place, colour in zip(places, colours[: len(places)], strict=True):
        if place:
            x, y = place
            picture[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3] = colour
    return picture


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
def prepared() -> StillCameraObjective:
    """It knows the background; its weights are random."""
    torch.manual_seed(0)
    model = StillCameraObjective(TINY, SlotTrainingConfig(points=200, uniform=60)).eval()
    model.prepare(random_frames(np.random.default_rng(0), 600))
    return model


def test_the_background_is_the_median_of_the_training_frames(prepared: StillCameraObjective) -> None:
    for part in (prepared.encoder, prepared.decoder):
        assert torch.allclose(part.background.permute(1, 2, 0) * 255, torch.from_numpy(BACKGROUND).float(), atol=1e-3)


def test_what_begins_every_video_is_not_the_background() -> None:
    video = np.stack([frame((5, 5)), *[frame()] * 3])
    model = StillCameraObjective(TINY, SlotTrainingConfig(points=200, uniform=60))
    model.prepare(np.tile(video, (2000, 1, 1, 1)))
    assert torch.allclose(model.encoder.background.permute(1, 2, 0) * 255, torch.from_numpy(BACKGROUND).float())


@torch.no_grad()
def test_slots_keep_what_moves_take_what_enters_and_lose_what_leaves(prepared: StillCameraObjective) -> None:
    video = [
        frame((4 + 2 * t, 7) if t < 6 else None, (24, 20) if t >= 3 else None, (8, 24) if t >= 8 else None)
        for t in range(11)
    ]
    slots = prepared.encoder.track(torch.from_numpy(np.stack(video))[None])[0]
    assert holding(slots)[:, 1:].tolist() == [[t < 6, t >= 3, t >= 8] for t in range(11)]
    place = (centroid_of(slots) + 1) * 16 - 0.5
    for t in range(6):
        assert (place[t, 1] - torch.tensor([4.0 + 2 * t, 7.0])).norm() < 1
    assert (place[3:, 2] - torch.tensor([24.0, 20.0])).norm(dim=-1).max() < 1


@torch.no_grad()
def test_what_was_hidden_comes_back_to_its_slot_where_its_motion_leads(prepared: StillCameraObjective) -> None:
    hidden = range(5, 8)
    video = [frame((4 + 2 * t, 7) if t not in hidden else None, (24, 20)) for t in range(11)]
    slots = prepared.encoder.track(torch.from_numpy(np.stack(video))[None])[0]
    moving = int((centroid_of(slots[0])[1:, 1]).argmin()) + 1
    assert holding(slots)[:, moving].tolist() == [t not in hidden for t in range(11)]
    assert holding(slots)[:, 1:].sum(1).tolist() == [2 - (t in hidden) for t in range(11)]
    assert not slots[list(hidden), moving].any()


@torch.no_grad()
@pytest.mark.parametrize("away", [GONE, GONE + 1])
def test_where_no_slot_is_free_what_enters_gets_that_of_what_is_away_longest(
    prepared: StillCameraObjective, away: int
) -> None:
    present = frame((6, 7), (24, 9), (15, 25))
    missing = [frame(None, (24, 9), (15, 25))] * away
    entered = frame((6, 24), (24, 9), (15, 25), colours=[(0, 200, 0), *COLOURS[1:]])
    slots = prepared.encoder.track(torch.from_numpy(np.stack([present, *missing, entered]))[None])[0]
    places = (centroid_of(slots) + 1) * 16 - 0.5
    lost = int((places[0] - torch.tensor([6.0, 7.0])).norm(dim=-1).argmin())
    taken = away > GONE
    assert holding(slots)[:, lost].tolist() == [True, *[False] * away, taken]
    assert not taken or (places[-1, lost] - torch.tensor([6.0, 24.0])).norm() < 1
    assert holding(slots)[-1, 1:].sum() == 2 + taken


@torch.no_grad()
def test_what_has_left_the_picture_is_forgotten(prepared: StillCameraObjective) -> None:
    video = [frame((26 + 3 * t, 7) if 26 + 3 * t < 34 else None, (8, 20)) for t in range(6)]
    pictures = torch.from_numpy(np.stack(video)).permute(0, 3, 1, 2)[None] / 255
    seen, known = zip(
        *((holding(output.slots)[:, 1:].sum().item(), memory.known.sum().item() if memory else 0) for output, memory in
          prepared.encoder.follow(pictures.unbind(1))),
        strict=True,
    )  # fmt: skip
    assert seen == (2, 2, 2, 1, 1, 1)
    assert known == (0, 2, 2, 2, 1, 1), "before each frame; what is missing in one is forgotten after it"


@torch.no_grad()
def test_videos_are_followed_alone_as_in_a_batch(prepared: StillCameraObjective) -> None:
    rng = np.random.default_rng(3)
    videos = torch.from_numpy(np.stack([random_frames(rng, 8) for _ in range(3)]))
    for video, own in zip(videos.split(1), prepared.encoder.track(videos).split(1), strict=True):
        assert torch.allclose(prepared.encoder.track(video), own, atol=1e-4)


@torch.no_grad()
def test_where_nothing_is_slots_are_empty_and_the_background_is_painted(prepared: StillCameraObjective) -> None:
    slots = prepared.encoder.read(torch.from_numpy(frame())[None])
    assert not slots[:, 1:].any() and slots[:, 0].any()
    painted, masks = prepared.decoder.paint(slots, grid_coordinates(32)[None])
    assert torch.allclose(painted.view(32, 32, 3) * 255, torch.from_numpy(BACKGROUND).float(), atol=0.5)
    assert torch.allclose(masks[:, 0], torch.ones(1, 32 * 32))


@torch.no_grad()
def test_slots_start_where_things_are_also_of_one_colour(prepared: StillCameraObjective) -> None:
    places = [(6, 7), (24, 9), (15, 25)]
    difference = torch.from_numpy(frame(*places)).permute(2, 0, 1)[None] / 255 - prepared.encoder.background
    contrast = avg_pool2d(difference.abs().sum(1, keepdim=True), 2).flatten(1)
    centre, there, known = prepared.encoder.places(contrast, Memory.of(torch.zeros(1, 4, 32)))
    found = (centre[0, 1:] + 1) * 16 - 0.5
    nearest = [int((found - torch.tensor(place)).norm(dim=-1).argmin()) for place in places]
    assert there.all() and not known.any() and sorted(nearest) == [0, 1, 2]
    assert all((found[slot] - torch.tensor(p)).norm() < 1.5 for slot, p in zip(nearest, places, strict=True))


def test_training_learns_to_paint_things(prepared: StillCameraObjective) -> None:
    model, generator = copy.deepcopy(prepared), torch.Generator().manual_seed(0)
    frames = torch.from_numpy(random_frames(np.random.default_rng(1), 16)).permute(0, 3, 1, 2)
    clips = torch.stack([frames, frames.roll(1, -1)], dim=1) / 255
    optimizer, losses = torch.optim.Adam(model.parameters(), 2e-3), []
    for _ in range(40):
        optimizer.zero_grad()
        losses.append(model(clips, model.draw(clips, generator))["total"])
        losses[-1].backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert losses[-1] < 0.8 * losses[0]


@torch.no_grad()
def test_what_things_looked_like_before_must_explain_them_too(prepared: StillCameraObjective) -> None:
    """A thing that stays is painted as it looked in the frame before, one that enters as it looks now."""
    video = torch.from_numpy(np.stack([frame((6, 7)), frame((8, 7), (24, 20))])).permute(0, 3, 1, 2)[None] / 255
    drawn = prepared.draw(video, torch.Generator().manual_seed(0))
    first, memory = prepared.encoder.step(video[:, 0], None)
    second, _ = prepared.encoder.step(video[:, 1], memory)
    before = second.slots.clone()
    before[:, 1, APPEARANCE:] = first.slots[:, 1, APPEARANCE:]
    expected = prepared.explained(before, second.attention, video[:, 1], drawn[:, 1])["total"]
    terms = prepared(video, drawn)
    assert holding(second.slots)[0].tolist() == [True, True, True, False]
    torch.testing.assert_close(terms["remembered"], expected)
    torch.testing.assert_close(terms["total"] - terms["decoded"] - terms["attended"], expected + 0.05 * terms["tie"])


@torch.no_grad()
def test_round_trip(prepared: StillCameraObjective, tmp_path: Path) -> None:
    prepared.save(tmp_path)
    loaded = SlotAutoencoder.load(tmp_path)
    scene = torch.from_numpy(frame((6, 7), (24, 9)))[None]
    assert torch.equal(loaded.encoder.read(scene), prepared.encoder.read(scene))


@torch.no_grad()
def test_finer_frames_show_the_same_things(prepared: StillCameraObjective) -> None:
    torch.manual_seed(0)
    finer = replace(TINY, image_size=64).build()[0].eval()
    finer.load_state_dict({**prepared.encoder.state_dict(), "background": finer.background}, strict=True)
    finer.background.copy_(prepared.encoder.background.repeat_interleave(2, 1).repeat_interleave(2, 2))
    scene = frame((6, 7), (13, 9), (24, 25))
    coarse = prepared.encoder.read(torch.from_numpy(scene)[None])
    fine = finer.read(torch.from_numpy(scene.repeat(2, 0).repeat(2, 1))[None])
    assert holding(coarse).all() and holding(fine).all()
    apart = (centroid_of(fine)[0, 1:, None] - centroid_of(coarse)[0, None, 1:]).norm(dim=-1).min(1)
    assert apart.values.max() < 2 / 16 and sorted(apart.indices.tolist()) == [0, 1, 2]


@pytest.mark.parametrize("wrong", [{"n_slots": 1}, {"image_size": 30}, {"slot_dim": 12}, {"far": 0.0}])
def test_sizes_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="encoder"):
        replace(TINY, **wrong)


# ------------------------------------------------------------------------------------------------ task=segmentation


def test_segmentation_of_a_data_set(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    collect(CLEVRERCollection(out=data, videos=3, workers=1))
    torch.manual_seed(0)
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
    assert {name: row["number"] for name, row in measures.items()} == {
        "FG-ARI, frame": 16, "FG-ARI, video": 1, "mBO, frame": 16,
    }  # fmt: skip
    assert measures["FG-ARI, frame"]["mean"] > 0.05 and 0 < measures["mBO, frame"]["mean"] < 0.2
    assert iio.imread(out / "segmentation.png").shape == (3 * 64 * 2, 8 * 64 * 2, 3)
    with pytest.raises(ValueError, match="no scene of split"):
        segmentation.run(replace(config, split="other"))


def drawn(count: int, frames: int) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Pictures and masks of new scenes."""
    renderer, rng = CLEVRERRenderer(64, 64), np.random.default_rng(5)
    for _ in range(count):
        shown = map(partial(renderer.draw, simulate(sample_scene(rng), frames=frames)), range(frames))
        pictures, masks = (np.stack(parts) for parts in zip(*shown, strict=True))
        yield pictures, masks


@torch.no_grad()
def test_the_bundled_encoder_gives_objects_of_new_scenes_a_slot_each_that_they_keep() -> None:
    autoencoder, recipe = load_encoder(Path("clevrer"))
    assert recipe["command"]["encoder"]["kind"] == "still"
    frames_of, videos = [], []
    for frames, truth in drawn(3, 64):
        slots = autoencoder.encoder.track(torch.from_numpy(frames)[None])[0]
        seen = np.array([len(np.unique(one[one > 0])) for one in truth])
        assert np.abs(holding(slots)[:, 1:].sum(1).numpy() - seen).mean() < 1
        _, masks = autoencoder.decoder.paint(slots[::16], grid_coordinates(64).expand(4, -1, -1))
        found = masks.argmax(1).view(-1, 64, 64).numpy()
        frames_of += [foreground_ari(one, other) for one, other in zip(truth[::16], found, strict=True) if one.any()]
        videos.append(foreground_ari(truth[::16], found))
    assert np.mean(frames_of) > 0.8 and np.mean(videos) > 0.7


@pytest.mark.parametrize("name", ["clevrer", "clevrer-unmasked"])
def test_the_bundled_predictors_foretell_new_scenes_better_than_the_last_frame_does(name: str) -> None:
    model = Checkpoint.from_pretrained(name).model
    errors = []
    for frames, _ in drawn(6, 60):
        slots = model.encoder.track(torch.from_numpy(frames)[None])
        predicted = continued(model, slots[:, :40], 60)
        true, ours, last = (
            model.latent(part, part.new_zeros(*part.shape[:2], 0)).slots
            for part in (slots[:, 40:], predicted[:, 40:], slots[:, 39:40])
        )
        errors.append([float((guess - true).square().mean()) for guess in (ours, last)])
    predicting, copying = np.mean(errors, axis=0)
    assert predicting < copying


def test_a_slot_that_changes_its_object_counts_in_the_video_alone() -> None:
    truth = np.zeros((2, 4, 4), np.uint8)
    truth[:, :2, :2], truth[:, 2:, 2:] = 1, 2
    swapped = np.stack([truth[0], np.array([0, 2, 1])[truth[1]]]).astype(np.int64)
    video = segmentation.Segmented(truth, swapped, np.zeros((2, 4, 4, 3), np.uint8))
    assert [foreground_ari(*frame) for frame in video.frames] == [1.0, 1.0]
    assert foreground_ari(truth, truth.astype(np.int64)) == 1.0 > foreground_ari(truth, swapped)
