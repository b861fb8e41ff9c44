import numpy as np
import pytest

from bundle.dicom.elements import Unusable
from bundle.dicom.geometry import Plane
from bundle.dicom.slice_grid import check_gaps_option, notes_on_grid, regular_grid
from bundle.errors import BundleError


def planes(places, *, along=(0.0, 0.0, 1.0)):
    row, column = np.array([1.0, 0, 0]), np.array([0, 1.0, 0])
    return [Plane(np.array([5.0, 6.0, 7.0]) + p * np.array(along), row, column, (0.8, 0.8)) for p in places]


@pytest.mark.parametrize(
    ("places", "spacing", "count", "kept"),
    [
        ([0, 1, 2, 4, 5], 1, 6, 5),  # one hole
        ([0, 1, 2, 6, 8], 1, 9, 5),  # several
        ([0, 2.5, 5, 7.5, 9.0, 15.1], 2.5, 7, 4),  # a seam is no spacing; the grid ends 0.1 mm before
        ([0, 5, 10, 15, 16, 17, 18, 18.7], 1, 20, 7),  # the thinner block decides and is kept whole
        ([0, 1, 2, 3, 4.7], 1, 6, 4),  # the last slice stands 0.3 mm further out
        ([0, 1.1, 2, 3.1, 4, 5.1], 0.9, 6, 2),
    ],
)
def test_the_grid_keeps_what_it_can_and_loses_no_end(places, spacing, count, kept):
    grid = regular_grid(planes(places))
    origins = grid.origins
    assert grid.affine[2, 2] == pytest.approx(spacing, abs=0.01) and len(origins) == count
    heights = grid.affine[2, 3] - 7 + np.arange(count) * grid.affine[2, 2]
    assert len(set(origins.below[origins.exact])) == kept
    assert heights[0] <= 0.5 * spacing and abs(heights[-1] - places[-1]) <= 0.5 * spacing + 1e-6
    for k in range(count):
        assert abs(places[origins.below[k]] - heights[k]) <= max(places[-1], 1)
        if len(origins.of(k)) == 2:  # linear interpolation of the positions gives the position
            a, b = origins.of(k)
            assert (1 - origins.weight[k]) * places[a] + origins.weight[k] * places[b] == pytest.approx(heights[k])
    used = {n for k in range(count) for n in origins.of(k)}
    assert {0, len(places) - 1} <= used


@pytest.mark.parametrize(
    ("stack", "words"),
    [
        (planes([0, 5, 10, 40, 45]), "too wide"),
        (planes([0, 0.01, 5, 10, 15, 20]), "too irregular"),
        (planes([0, 1, 2, 4], along=(0.5, 0, 1)), "sideways"),
        ([*planes([0, 1, 2]), *planes([4], along=(0, 0.7, 1))], "straight"),
    ],
)
def test_what_cannot_be_resampled_is_refused(stack, words):
    with pytest.raises(Unusable, match=words):
        regular_grid(stack)


def test_notes_say_what_was_kept_and_where_the_gaps_were():
    stack = planes([0, 1, 2, 4, 5])
    (note,) = notes_on_grid(regular_grid(stack), stack)
    assert "5 of 5 slices kept" in note and "1 interpolated" in note and "2 mm at 9.00..11.00 mm" in note


def test_a_tilted_stack_keeps_its_shear():
    grid = regular_grid(planes([0, 4, 8, 9, 16, 23, 30], along=(0, -0.33, 1)))
    np.testing.assert_allclose(grid.affine[:3, 2] / grid.affine[2, 2], [0, -0.33, 1])


def test_the_option_has_two_values():
    assert [check_gaps_option(value) for value in ("refuse", "resample")] == ["refuse", "resample"]
    with pytest.raises(BundleError, match="refuse or resample, not True"):
        check_gaps_option(True)
