"""Pictures and segmentation of CLEVRER scenes."""

import pickle
from dataclasses import replace

import numpy as np
import pytest

from envs.clevrer import CLEVRERRenderer, Scene, SceneObject, Trajectory, simulate
from envs.clevrer.camera import Camera
from envs.clevrer.scene import COLOURS, MATERIALS, SHAPES


def still(*items: SceneObject) -> Trajectory:
    return simulate(Scene(items), frames=1)


def one(
    shape: str = "sphere", colour: str = "red", material: str = "rubber", x: float = 0.0, y: float = 0.0
) -> SceneObject:
    return SceneObject(0, shape, colour, material, (x, y), angle=0.4)


STILL = still(
    one("cube", "red", "metal", 0.0, -0.8),
    replace(one("sphere", "blue", "metal", 0.4, 0.3), id=1),
    replace(one("cylinder", "cyan", "rubber", -1.0, 0.6), id=2),
)
SMALL = CLEVRERRenderer(64, 64)
LARGE = CLEVRERRenderer(240, 160)


def pure(segmentation: np.ndarray) -> np.ndarray:
    """Pixels whose whole neighbourhood shows the same; those on an edge mix two colours."""
    windows = np.lib.stride_tricks.sliding_window_view(segmentation, (3, 3))
    return np.pad(windows.min(axis=(2, 3)) == windows.max(axis=(2, 3)), 1)


@pytest.mark.parametrize("renderer", [SMALL, LARGE])
def test_picture_and_segmentation_agree(renderer: CLEVRERRenderer) -> None:
    picture, segmentation = renderer.draw(STILL, 0)
    assert picture.shape == (renderer.height, renderer.width, 3) and picture.dtype == np.uint8
    assert segmentation.shape == picture.shape[:2] and segmentation.dtype == np.uint8
    assert set(np.unique(segmentation)) == {0, 1, 2, 3}
    colours = picture.astype(int)
    strongest = colours.argmax(axis=2)
    grey = np.ptp(colours, axis=2) == 0
    inner = pure(segmentation)
    assert grey[inner & (segmentation == 0)].all()
    dull = (colours.max(axis=2) < 250) & inner  # highlights are white
    assert (strongest[dull & (segmentation == 1)] == 0).all()
    assert (strongest[dull & (segmentation == 2)] == 2).all()
    assert (strongest[dull & (segmentation == 3)] >= 1).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("x", "y"), [(0.0, 0.0), (1.0, -0.7), (-2.0, 1.0)])
def test_objects_are_where_the_camera_projects_them(shape: str, x: float, y: float) -> None:
    _, segmentation = LARGE.draw(still(one(shape, x=x, y=y)), 0)
    rows, columns = np.nonzero(segmentation)
    centre, depth = Camera(240, 160).project([x, y, 0.2])
    assert (columns.mean() + 0.5, rows.mean() + 0.5) == pytest.approx(centre, abs=1.5)
    if shape == "sphere":
        assert len(rows) == pytest.approx(np.pi * (0.2 * 262.5 / depth) ** 2, rel=0.06)
    elif shape == "cube":
        assert len(rows) > (0.4 * 262.5 / depth) ** 2


def test_a_cube_and_a_cylinder_have_their_outlines() -> None:
    for shape, sides in (("cube", 8), ("cylinder", 64)):
        turns = 0.4 + 2 * np.pi * (np.arange(sides // 2) + 0.5) / (sides // 2)
        radius = 0.2 * np.sqrt(2) if shape == "cube" else 0.2
        rim = [(radius * np.cos(turn), radius * np.sin(turn), z) for turn in turns for z in (0.0, 0.4)]
        pixels, _ = Camera(240, 160).project(rim)
        _, segmentation = LARGE.draw(still(one(shape)), 0)
        rows, columns = np.nonzero(segmentation)
        assert (columns.min(), rows.min()) == pytest.approx(pixels.min(axis=0), abs=1.5)
        assert (columns.max() + 1, rows.max() + 1) == pytest.approx(pixels.max(axis=0), abs=1.5)


@pytest.mark.parametrize("swap", [False, True])
def test_nearer_objects_hide_farther_ones(swap: bool) -> None:
    near, far = one("cube", "green", x=0.6), replace(one("sphere", "purple", x=0.0), id=1)
    both = still(far, near) if swap else still(near, far)
    _, together = LARGE.draw(both, 0)
    _, near_alone = LARGE.draw(still(near), 0)
    _, far_alone = LARGE.draw(still(far), 0)
    assert (together == 1).sum() == (near_alone == 1).sum(), "the nearer one is whole"
    assert 0 < (together == 2).sum() < (far_alone == 2).sum()
    np.testing.assert_array_equal(together == 2, (far_alone == 2) & (near_alone == 0))


def test_metal_shines_and_rubber_does_not() -> None:
    for shape in SHAPES:
        brightest = {}
        for material in MATERIALS:
            picture, segmentation = LARGE.draw(still(one(shape, "purple", material)), 0)
            inner = pure(segmentation) & (segmentation == 1)
            brightest[material] = picture[inner].min(axis=1).max()  # white is bright in all channels
        assert brightest["metal"] > brightest["rubber"] + 40


def test_colours_can_be_told_apart() -> None:
    means = []
    for colour in COLOURS:
        picture, segmentation = SMALL.draw(still(one("cylinder", colour)), 0)
        means.append(picture[segmentation == 1].mean(axis=0))
    distance = np.linalg.norm(np.array(means)[:, None] - means, axis=-1)
    assert distance[~np.eye(len(COLOURS), dtype=bool)].min() > 25


def test_objects_darken_the_floor_below_them() -> None:
    empty, _ = LARGE.draw(still(), 0)
    for shape in SHAPES:
        picture, segmentation = LARGE.draw(still(one(shape)), 0)
        floor = segmentation == 0
        assert (picture[floor] <= empty[floor]).all()
        assert picture[floor].min() < 0.7 * empty[floor].min(initial=255, where=empty[floor] > 100)


def test_what_is_removed_or_out_of_view_is_not_drawn() -> None:
    empty, _ = SMALL.draw(still(), 0)
    items = (one(), replace(one(colour="blue", y=9.0), id=1), replace(one(colour="green", x=9.0), id=2))
    trajectory = simulate(Scene(items), {0: 1}, frames=2)
    assert set(np.unique(SMALL.draw(trajectory, 0)[1])) == {0, 1}
    picture, segmentation = SMALL.draw(trajectory, 1)
    np.testing.assert_array_equal(picture, empty)
    assert not segmentation.any()


@pytest.mark.parametrize("shape", SHAPES)
def test_objects_slide_out_of_the_picture(shape: str) -> None:
    areas = [
        (SMALL.draw(still(one(shape, x=x, y=y)), 0)[1] == 1).sum()
        for x, y in ((0, 1.9), (0, 2.1), (0, 2.3), (0, 3.0), (2.0, 0), (2.3, 0), (2.9, 0), (4.3, 0), (5.5, 0.1))
    ]
    assert areas[0] > areas[1] > areas[2] > 0 == areas[3]
    assert areas[4] > areas[5] > areas[6] == areas[7] == areas[8] == 0


def test_a_cube_along_the_line_of_sight_has_no_holes() -> None:
    renderer = CLEVRERRenderer(63, 63)  # the middle column looks along the cube's sides
    _, segmentation = renderer.draw(still(replace(one("cube"), angle=0.0)), 0)
    rows, columns = np.nonzero(segmentation)
    assert segmentation[rows.min() + 1 : rows.max(), 31].all()
    assert (columns.max() + columns.min()) == 62


def test_motion_of_less_than_a_pixel_shows() -> None:
    assert (SMALL.draw(still(one()), 0)[0] != SMALL.draw(still(one(y=0.01)), 0)[0]).any()


def test_frames_do_not_share_memory_and_repeat_exactly() -> None:
    picture, segmentation = SMALL.draw(STILL, 0)
    kept = picture.copy(), segmentation.copy()
    SMALL.draw(still(one()), 0)
    np.testing.assert_array_equal(picture, kept[0])
    np.testing.assert_array_equal(segmentation, kept[1])
    twin = pickle.loads(pickle.dumps(SMALL))
    for again in (SMALL, twin):
        np.testing.assert_array_equal(again.draw(STILL, 0)[0], kept[0])


@pytest.mark.parametrize("size", [(0, 64), (64, -1)])
def test_sizes_are_positive(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        CLEVRERRenderer(*size)
