import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.dicom.elements import Unusable
from bundle.dicom.geometry import Plane, Uneven, grid_affine, tilt_degrees


def planes(rotation, *, spacing=(0.8, 0.7), step=None, places=range(6)):
    row, column, normal = rotation.T
    step = 2.5 * normal if step is None else step
    return [Plane(np.array([1.0, 2.0, 3.0]) + k * step, row, column, spacing) for k in places]


@st.composite
def rotations(draw):
    matrix = np.array(draw(st.lists(st.floats(-1, 1), min_size=9, max_size=9))).reshape(3, 3) + np.eye(3) * 3
    q, _ = np.linalg.qr(matrix)
    return q * np.sign(np.linalg.det(q))


@given(rotations())
@settings(max_examples=40, deadline=None)
def test_the_affine_takes_every_voxel_to_its_place(rotation):
    stack = planes(rotation)
    affine = grid_affine(stack)
    for k, plane in enumerate(stack):
        expected = plane.position + 3 * plane.row * plane.spacing[1] + 5 * plane.column * plane.spacing[0]
        np.testing.assert_allclose((affine @ [3, 5, k, 1])[:3], expected, atol=1e-9)
    assert tilt_degrees(affine) == pytest.approx(0, abs=1e-4)


def test_a_tilted_gantry_gives_a_sheared_affine():
    angle = np.radians(15)
    rotation = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = grid_affine(planes(rotation, step=np.array([0, 0, 2.5])))
    assert tilt_degrees(affine) == pytest.approx(15)
    np.testing.assert_allclose(affine[:3, 2], [0, 0, 2.5])


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ([0, 1, 2, 4, 5], "1 missing slice "),
        ([0, 1, 2, 3, 4.7], "irregular"),
        ([0, 1, 1, 2], "share one position"),
        ([0], "single slice"),
        ([0, 1.1, 2, 3.1, 4, 5.1], "irregular"),
    ],
)
def test_uneven_stacks_are_refused(places, words):
    with pytest.raises(Unusable, match=words) as caught:
        grid_affine(planes(np.eye(3), places=places))
    assert isinstance(caught.value, Uneven) == (words not in ("share one position", "single slice"))


def test_a_stack_that_shifts_along_its_rows_is_refused():
    with pytest.raises(Unusable, match="sideways"):
        grid_affine(planes(np.eye(3), step=np.array([1.5, 0, 2.5])))


def test_rounded_positions_are_regular():
    grid_affine(planes(np.eye(3), places=[k + 0.001 * (-1) ** k for k in range(20)]))
