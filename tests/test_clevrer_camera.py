"""The CLEVRER camera against the published 3 x 4 matrix."""

import numpy as np
import pytest

from envs.clevrer.camera import Camera, inside_view

# As VRDP prints it, for 480 x 320 px.
REFERENCE = np.array(
    [
        [-207.8461456298828, 525.0000610351562, -120.00001525878906, 1200.0003662109375],
        [123.93595886230469, 1.832598354667425e-05, -534.663330078125, 799.9999389648438],
        [-0.866025447845459, -3.650024282819686e-08, -0.4999999701976776, 5.000000476837158],
    ]
)
POINTS = np.random.default_rng(0).uniform((-5, -3, 0), (2, 3, 0.4), (50, 3))


def test_matrix_is_the_published_one() -> None:
    np.testing.assert_allclose(Camera().matrix, REFERENCE, atol=1e-3)
    homogeneous = np.concatenate([POINTS, np.ones((50, 1))], axis=1) @ REFERENCE.T
    pixels, depth = Camera().project(POINTS)
    np.testing.assert_allclose(pixels, homogeneous[:, :2] / homogeneous[:, 2:], atol=1e-3)
    np.testing.assert_allclose(depth, homogeneous[:, 2], atol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (240, 160), (480, 320), (960, 100)])
def test_any_size_is_the_same_view_stretched(size: tuple[int, int]) -> None:
    pixels, _ = Camera().project(POINTS)
    stretched, _ = Camera(*size).project(POINTS)
    np.testing.assert_allclose(stretched / size, pixels / (480, 320), atol=1e-12)


def test_rays_and_ground_lead_back() -> None:
    camera = Camera(64, 64)
    pixels, _ = camera.project(POINTS)
    towards = POINTS - [5 * np.cos(np.pi / 6), 0, 2.5]
    np.testing.assert_allclose(camera.rays(pixels), towards / np.linalg.norm(towards, axis=1, keepdims=True), atol=1e-9)
    for point, pixel in zip(POINTS, pixels, strict=True):
        np.testing.assert_allclose(camera.ground(pixel, z=point[2]), point[:2], atol=1e-9)


def test_the_corners_see_the_ground_where_the_published_camera_does() -> None:
    (far_left, far_right, near_right, near_left) = Camera().ground([[0, 0], [480, 0], [480, 320], [0, 320]])
    assert far_left == pytest.approx([far_right[0], -far_right[1]])
    assert near_left == pytest.approx([near_right[0], -near_right[1]])
    assert (near_right[0], far_right[0]) == pytest.approx((2.18, -5.6), abs=0.05)
    assert (near_right[1], far_right[1]) == pytest.approx((1.38, 4.45), abs=0.05)


@pytest.mark.parametrize(
    ("x", "y", "inside"),
    [
        (0, 0, True),
        (0, 2.2, True),
        (0, 2.4, True),  # the centre is 17 px outside, but the left of the surface is inside
        (0, 2.6, False),
        (0, -2.6, False),
        (2.1, 0, True),
        (2.6, 0, False),
        (4.3, 0, False),  # below the camera
        (20, 0, False),  # behind it
        (-20, 0, False),
    ],
)
def test_visibility(x: float, y: float, inside: bool) -> None:
    assert inside_view([x, y, 0.2]) == inside


def test_visibility_of_many_at_once() -> None:
    locations = np.stack([POINTS, POINTS + [0, 9, 0]])
    assert inside_view(locations).shape == (2, 50)
    assert not inside_view(locations)[1].any()
