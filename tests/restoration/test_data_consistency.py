"""Thin slices keep what their thick ones measured, and nothing else is touched for it."""

import dataclasses

import numpy as np
import pytest
from phantom_series import write_phantom_series

from bundle.degrade.slabs import ThickSlices, linear_weights
from bundle.dicom.index import read_volume
from bundle.dicom.thin_slices import ThinSlices
from bundle.restoration import data_consistency
from bundle.restoration.data_consistency import DataConsistency, consistency_of, make_consistent, slabs_of
from bundle.restoration.thick_again import thick_again

RNG = np.random.default_rng(0)
COUNT, STEP_MM = 40, 0.8
PLAIN = [ThickSlices(thickness_mm=2.4), ThickSlices(thickness_mm=3.0), ThickSlices(thickness_mm=2.0, increment_mm=5.0)]
OVERLAPPING = ThickSlices(thickness_mm=5.0, increment_mm=2.5)


def problem(slabs):
    """Patient, interpolated thick slices, and a network's wrong difference from them, (pixels, thin)."""
    patient = RNG.normal(0, 100, (50, COUNT)).astype(np.float32)
    interpolated = slabs.apply(patient[None], step_mm=STEP_MM)[0]
    return patient, interpolated, RNG.normal(0, 60, patient.shape).astype(np.float32)


def consistency(slabs):
    return DataConsistency.of_slabs(slabs, count=COUNT, step_mm=STEP_MM)


@pytest.mark.parametrize("slabs", PLAIN, ids=str)
def test_the_result_averages_to_the_thick_slices_whatever_the_network_said(slabs):
    patient, interpolated, difference = problem(slabs)
    result = interpolated + difference + consistency(slabs).change(difference, interpolated)
    averages = slabs.slab_weights(COUNT, STEP_MM)
    assert np.abs((interpolated + difference - patient) @ averages.T).max() > 20
    np.testing.assert_allclose(result @ averages.T, patient @ averages.T, atol=2e-3)


@pytest.mark.parametrize("slabs", [*PLAIN, OVERLAPPING], ids=str)
def test_it_is_an_orthogonal_projection_so_that_no_error_grows(slabs):
    patient, interpolated, difference = problem(slabs)
    chosen = consistency(slabs)
    change = chosen.change(difference, interpolated)
    np.testing.assert_allclose(chosen.change(difference + change, interpolated), 0, atol=2e-3)
    before, after = (interpolated + d - patient for d in (difference, difference + change))
    assert (np.linalg.norm(after, axis=1) < np.linalg.norm(before, axis=1)).all()
    np.testing.assert_allclose((change * after).sum(1) / (change**2).sum(1), 0, atol=1e-4)


@pytest.mark.parametrize("slabs", [*PLAIN, OVERLAPPING], ids=str)
def test_constant_hu_do_not_count(slabs):
    _, interpolated, difference = problem(slabs)
    changes = [consistency(slabs).change(difference, interpolated + hu) for hu in (0, 1000)]
    np.testing.assert_allclose(*changes, atol=5e-3)


@pytest.mark.parametrize("slabs", [*PLAIN, OVERLAPPING], ids=str)
def test_noise_of_thick_slices_is_not_blown_up_where_they_overlap(slabs):
    centres = slabs.centres_mm(COUNT, STEP_MM)
    noise = RNG.normal(0, 1, (500, len(centres)))
    interpolated = (noise @ linear_weights(centres, np.arange(COUNT) * STEP_MM).T).astype(np.float32)
    result = interpolated + consistency(slabs).change(np.zeros_like(interpolated), interpolated)
    assert result.std(axis=0).max() < 2.5, "5.6 for the overlapping ones if all of their modes were inverted"


def thin_volume(folder, *, wanted=2.0, thickness="5", slices=8):
    write_phantom_series(folder, slices=slices, spacing=(0.8, 0.8, 5.0), SliceThickness=thickness)
    thick = read_volume(str(folder))
    return thick, ThinSlices(slice_spacing_mm=wanted, nominal=True).volume(thick)


@pytest.mark.parametrize("wanted", [1.0, 2.0, 1.3], ids=lambda mm: f"{mm:g} mm")
def test_a_series_keeps_every_thick_slice_that_lies_within_the_thin_ones(tmp_path, wanted, monkeypatch):
    thick, thin = thin_volume(tmp_path, wanted=wanted)
    slabs = slabs_of(thin)
    assert (slabs.thickness_mm, slabs.increment_mm) == pytest.approx((5.0, 5.0))
    difference = RNG.normal(0, 40, thin.shape).astype(np.float32)
    expected = difference.copy()
    make_consistent(expected, thin)
    averages = slabs.slab_weights(thin.shape[2], thin.spacing_mm[2])
    result = (thin.hu() + expected) @ averages.T
    inner = slice(1, thick.shape[2] - 2)  # those at the ends reach beyond the thin slices
    # HU of interpolated slices were rounded; a distance that misses most thick slices shows it.
    np.testing.assert_allclose(result[..., inner], thick.hu()[..., inner], atol=0.01 if wanted == 1 else 1.0)
    monkeypatch.setattr(data_consistency, "_BLOCK_VOXELS", 3 * thin.shape[0] * thin.shape[2])
    blocks = difference.copy()
    make_consistent(blocks, thin)
    np.testing.assert_allclose(blocks, expected, atol=1e-3)


def test_half_precision_is_enough_and_the_check_of_thick_slices_finds_nothing_left(tmp_path):
    _, thin = thin_volume(tmp_path, wanted=1.0)
    difference = RNG.normal(0, 20, thin.shape).astype(np.float16)
    make_consistent(difference, thin)
    again, inside = thick_again(thin), np.ones(thin.shape[:2], bool)
    found = []
    for k in range(thin.shape[2]):
        found += again.add(k, thin.slice_hu(k), thin.slice_hu(k) + difference[:, :, k], inside)
    assert len(found) == 6
    last_place = float(np.spacing(np.abs(difference).max()))
    assert max(np.abs(one).max() for one, _ in found) <= last_place / 2 + 1e-3


@pytest.mark.parametrize("thickness", ["", "0", "25"])
def test_nothing_is_asked_for_where_the_thickness_is_not_known_or_cannot_be(tmp_path, thickness):
    _, thin = thin_volume(tmp_path, thickness=thickness)
    assert slabs_of(thin) is None and consistency_of(thin) is None and thick_again(thin) is None
    difference = RNG.normal(0, 40, thin.shape).astype(np.float32)
    before = difference.copy()
    make_consistent(difference, thin)
    np.testing.assert_array_equal(difference, before)


def test_other_series_are_left_alone(tmp_path):
    thick, thin = thin_volume(tmp_path, slices=2, wanted=4.0)
    assert slabs_of(thick) is None, "never made thin"
    assert consistency_of(thin) is None, "no thick slice lies within two thin ones"
    assert slabs_of(dataclasses.replace(thin, origins=None)) is None
