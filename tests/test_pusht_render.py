"""Frames and segmentation masks of the Push-T renderer."""

import pickle

import numpy as np
import pytest

from envs.pusht import SEGMENTS, PushTEnv, PushTRenderer, Style

GOAL = (256.0, 256.0, np.pi / 4)
STATE = np.array([120.0, 400.0, 330.0, 150.0, 2.0, 0.0, 0.0])
FLAT = Style(background=(255, 255, 255), goal=(0, 255, 0), block=(255, 0, 0), agent=(0, 0, 255), wall=(255, 255, 255))


@pytest.mark.parametrize("size", [(64, 64), (96, 96), (224, 224), (120, 60)])
def test_masks_agree_with_the_colours_of_the_frame(size: tuple[int, int]) -> None:
    renderer = PushTRenderer(*size, FLAT)
    frame, masks = renderer.frame(STATE, GOAL), renderer.masks(STATE, GOAL)
    assert masks.shape == frame.shape[:2] == size[::-1] and masks.dtype == np.uint8
    colours = np.array([FLAT.background, FLAT.goal, FLAT.block, FLAT.agent])
    distance = np.linalg.norm(frame[..., None, :].astype(float) - colours, axis=-1)
    nearest = distance.argmin(-1)
    pure = distance.min(-1) < 5  # pixels on an edge mix two colours
    assert pure.mean() > 0.85
    assert (nearest == masks)[pure].all()
    assert set(np.unique(masks)) == set(range(len(SEGMENTS)))


def test_masks_have_the_area_of_the_objects() -> None:
    masks = PushTRenderer(256, 256).masks(STATE, GOAL)
    area = np.bincount(masks.ravel(), minlength=4) * 4.0  # px of the arena
    assert area[3] == pytest.approx(np.pi * 15**2, rel=0.1)
    assert area[2] == pytest.approx(7 * 30**2, rel=0.25)  # the rim is drawn outside the outline
    assert area[1] == pytest.approx(7 * 30**2, rel=0.1)


@pytest.mark.parametrize("size", [64, 224])
def test_masks_are_where_the_state_says(size: int) -> None:
    rows, columns = np.nonzero(PushTRenderer(size, size).masks(STATE, GOAL) == 3)
    centre = np.array([columns.mean(), rows.mean()]) + 0.5
    assert centre * 512 / size == pytest.approx(STATE[:2], abs=1.5)


@pytest.mark.parametrize("size", [(192, 96), (60, 200)])
def test_pictures_that_are_not_square_are_squeezed(size: tuple[int, int]) -> None:
    rows, columns = np.nonzero(PushTRenderer(*size).masks(STATE, GOAL) == 3)
    extent = np.array([np.ptp(columns) + 1, np.ptp(rows) + 1])
    assert extent == pytest.approx(2 * Style().agent_radius * np.array(size) / 512, abs=1.5)
    centre = np.array([columns.mean(), rows.mean()]) + 0.5
    assert centre * 512 / size == pytest.approx(STATE[:2], abs=3)


def test_block_hides_the_goal_and_the_agent() -> None:
    masks = PushTRenderer(96, 96).masks([242, 270, *GOAL], GOAL)
    assert (masks == 2).any() and not (masks == 3).any() and (masks == 1).sum() < 20


def test_segmentation_in_info_follows_the_state() -> None:
    env = PushTEnv("state", segmentation=True, observation_width=64, observation_height=48)
    _, info = env.reset(options={"state": STATE})
    np.testing.assert_array_equal(info["segmentation"], PushTRenderer(64, 48).masks(STATE, GOAL))
    *_, after = env.step([0.5, 0.5])
    assert (after["segmentation"] != info["segmentation"]).any()
    assert "segmentation" not in PushTEnv("state").reset(seed=0)[1]


def test_frames_do_not_share_memory_and_repeat_exactly() -> None:
    renderer = PushTRenderer(64, 64)
    first = renderer.frame(STATE, GOAL)
    kept = first.copy()
    renderer.frame(STATE + 20, (100.0, 100.0, 0.0))
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(renderer.frame(STATE, GOAL), kept)


def test_sub_pixel_motion_shows() -> None:
    renderer = PushTRenderer(64, 64)
    moved = STATE + np.array([0, 0, 3.0, 0, 0, 0, 0])  # 3 px of the arena are 0.4 px of the frame
    assert (renderer.frame(STATE, GOAL) != renderer.frame(moved, GOAL)).any()


def test_renderer_can_be_pickled() -> None:
    renderer = PushTRenderer(64, 48, FLAT)
    frame = renderer.frame(STATE, GOAL)
    twin = pickle.loads(pickle.dumps(renderer))
    np.testing.assert_array_equal(twin.frame(STATE, GOAL), frame)
