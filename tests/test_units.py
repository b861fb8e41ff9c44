import pytest
import torch

from bundle.units import (
    BONE_WINDOW,
    LUNG_WINDOW,
    SOFT_TISSUE_WINDOW,
    ClinicalWindows,
    LinearWindow,
    window_limits,
)

UNION_HU = (-1350.0, 1500.0)


def volume(values) -> torch.Tensor:
    """HU (1, 1, n, 1, 1)."""
    return torch.as_tensor(values, dtype=torch.float32).reshape(1, 1, -1, 1, 1)


def three(lung: float, soft: float, bone: float) -> torch.Tensor:
    """One voxel (1, 3, 1, 1, 1) of network units."""
    return torch.tensor([lung, soft, bone]).reshape(1, 3, 1, 1, 1)


def test_window_limits_are_centre_and_half_width():
    assert window_limits((50.0, 400.0)) == (-150.0, 250.0)


@pytest.mark.parametrize("limits", [(-1000.0, 1000.0), (-1350.0, 1500.0), (-160.0, 240.0)])
def test_linear_window_gives_back_every_stored_value(limits):
    """Every 16-bit value with or without sign, far outside the window, comes back after rounding to whole HU."""
    units = LinearWindow(*limits)
    hu = volume(torch.arange(-32768, 65536))
    back = units.to_hu(units.from_hu(hu))
    assert (back - hu).abs().max() < 0.01
    assert torch.equal(back.round(), hu)


def test_linear_window_maps_its_limits_to_one_and_does_not_clip():
    units = LinearWindow(-1350.0, 1500.0)
    assert units.from_hu(volume([-1350, 75, 1500])).flatten().tolist() == pytest.approx([-1, 0, 1])
    assert units.from_hu(volume([1500 + 1425])).item() == pytest.approx(2)
    assert units.hu_per_unit == 1425
    assert units.channels == 1


def test_linear_window_keeps_differences_up_to_its_scale():
    units = LinearWindow()
    first, second = volume([-1000.0, 30.0]), volume([3071.0, -2000.0])
    expected = units.hu_per_unit * (units.from_hu(first) - units.from_hu(second))
    torch.testing.assert_close(first - second, expected)


def test_clinical_windows_invert_exactly_inside_their_union():
    units = ClinicalWindows()
    hu = volume(torch.arange(UNION_HU[0], UNION_HU[1] + 1))
    x = units.from_hu(hu)
    assert x.shape == (1, 3, hu.shape[2], 1, 1)
    assert x.abs().max() <= 1
    back = units.to_hu(x)
    assert (back - hu).abs().max() < 0.001
    assert torch.equal(back.round(), hu)


def test_clinical_windows_saturate_at_the_ends_of_their_union():
    units = ClinicalWindows()
    back = units.to_hu(units.from_hu(volume([-32768, -2000, -1350, 1500, 3071, 65535])))
    assert back.flatten().tolist() == [-1350.0] * 3 + [1500.0] * 3


def test_clinical_windows_are_lung_soft_tissue_and_bone():
    units = ClinicalWindows()
    assert units.channels == 3
    for channel, window in enumerate((LUNG_WINDOW, SOFT_TISSUE_WINDOW, BONE_WINDOW)):
        ends = units.from_hu(volume(window_limits(window)))[0, channel].flatten()
        assert ends.tolist() == pytest.approx([-1, 1])


@pytest.mark.parametrize(
    ("x", "expected_hu"),
    [
        (three(0.0, 0.0, 0.0), 50.0),  # all inside: soft tissue is the narrowest
        (three(0.0, 1.0, 0.0), -600.0),  # soft tissue saturated: lung is the next narrowest
        (three(-1.0, 1.0, 0.0), 500.0),  # only bone is left
        (three(-1.0, -1.0, -1.0), -1350.0),
        (three(1.0, 1.0, 1.0), 1500.0),
        (three(-1.0, 1.0, -1.0), 1500.0),  # all saturated, not all below
    ],
)
def test_disagreeing_channels_are_settled_by_the_narrowest_unsaturated_window(x, expected_hu):
    assert ClinicalWindows().to_hu(x).item() == pytest.approx(expected_hu)


def test_clinical_windows_are_settled_voxel_by_voxel_in_any_order_of_windows():
    hu = volume(torch.linspace(*UNION_HU, 101))
    ordered = ClinicalWindows()
    shuffled = ClinicalWindows(windows=(BONE_WINDOW, LUNG_WINDOW, SOFT_TISSUE_WINDOW))
    torch.testing.assert_close(ordered.to_hu(ordered.from_hu(hu)), shuffled.to_hu(shuffled.from_hu(hu)))


@pytest.mark.parametrize("units", [LinearWindow(), ClinicalWindows()])
def test_what_is_not_a_number_stays_so(units):
    back = units.to_hu(units.from_hu(volume([float("nan"), 0.0]))).flatten()
    assert back.isnan().tolist() == [True, False]


def test_both_share_the_units_of_a_single_channel_output():
    assert ClinicalWindows().hu_per_unit == LinearWindow().hu_per_unit == 1000
