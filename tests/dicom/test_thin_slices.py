"""Thin grids of thick series: where their slices lie, what they hold, and that others read them so."""

import datetime
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from phantom_series import phantom_hu, write_phantom_series
from thick_series import LIDC, write_thick

from bundle.degrade.slabs import linear_weights
from bundle.dicom.index import find_series, read_volume
from bundle.dicom.thin_slices import MAX_SLICES, ThinSlices, asked_for
from bundle.dicom.writer import Derivation, write_derived_series
from bundle.errors import BundleError

DCIODVFY = Path(sys.executable).with_name("dciodvfy")
DERIVATION = Derivation(
    description="interpolated", series_suffix="1 mm", settings_digest="ab", weights_digest="cd", software_version="0",
)  # fmt: skip


@pytest.fixture(scope="module")
def lidc_thick(tmp_path_factory):
    """A real chest of 1 mm slices, averaged to 5 mm."""
    if not LIDC.exists():
        pytest.skip("no real series here")
    return write_thick(LIDC, tmp_path_factory.mktemp("lidc"), 5.0)


def test_slices_lie_between_the_first_centre_and_the_last(tmp_path):
    write_phantom_series(tmp_path, slices=5, size=32, spacing=(0.8, 0.8, 5.0))
    volume = read_volume(str(tmp_path))
    for wanted, count in ((1.0, 21), (2.5, 9), (3.0, 7), (0.7, 29)):
        thin = ThinSlices(slice_spacing_mm=wanted).volume(volume)
        places = [np.array(header.ImagePositionPatient, float) for header in thin.headers]
        assert thin.shape == (32, 32, count) and thin.spacing_mm == pytest.approx((0.8, 0.8, wanted))
        np.testing.assert_allclose(places[0], volume.affine[:3, 3])
        np.testing.assert_allclose(np.diff(places, axis=0), [[0, 0, wanted]] * (count - 1), atol=2e-6)
        assert 20 - wanted < places[-1][2] - places[0][2] <= 20
        assert [header.InstanceNumber for header in thin.headers] == list(range(1, count + 1))
        assert all(header.SpacingBetweenSlices == wanted for header in thin.headers)


def test_values_are_those_of_trainings_interpolation(tmp_path):
    hu = write_phantom_series(tmp_path, slices=6, size=32, spacing=(0.8, 0.8, 5.0))
    volume = read_volume(str(tmp_path))
    thin = ThinSlices(slice_spacing_mm=1.5).volume(volume)
    weights = linear_weights(np.arange(6) * 5.0, np.arange(thin.shape[2]) * 1.5)
    np.testing.assert_allclose(thin.array, hu @ weights.T, atol=0.5 + 1e-3)  # rounded to stored values, no more
    for k in (0, 10):  # 0 and 15 mm: where a slice was taken, bit for bit
        np.testing.assert_array_equal(thin.stored[:, :, k], volume.stored[:, :, k * 3 // 10])
        assert thin.is_true_slice(k) and thin.sources(k) == (k * 3 // 10,)
    assert not thin.is_true_slice(1) and thin.sources(1) == (0, 1) and thin.sources(11) == (3, 4)
    array, affine = ThinSlices(slice_spacing_mm=1.5).array(hu, volume.affine_ras)
    np.testing.assert_allclose(array, hu @ weights.T, atol=1e-3)
    np.testing.assert_allclose(affine, thin.affine_ras)


def test_a_slice_thickness_is_claimed_only_where_a_network_made_it(tmp_path):
    write_phantom_series(tmp_path, slices=4, size=32, spacing=(0.8, 0.8, 5.0), SliceThickness="6")
    volume = read_volume(str(tmp_path))
    thickness = {
        nominal: {
            float(h.SliceThickness) for h in ThinSlices(slice_spacing_mm=1, nominal=nominal).volume(volume).headers
        }
        for nominal in (True, False)
    }
    assert thickness == {True: {1.0}, False: {6.0}}
    assert volume.headers[0].SliceThickness == 6, "the source's headers stay"


def test_padding_stays_padding_and_never_mixes(tmp_path):
    hu = phantom_hu(slices=4, size=32)
    hu[:4] = -2000
    hu[4:8, :, 2:] = -2000
    write_phantom_series(tmp_path, hu=hu, spacing=(0.8, 0.8, 5.0), PixelPaddingValue=-976)
    thin = ThinSlices(slice_spacing_mm=1).volume(read_volume(str(tmp_path)))
    assert thin.padding_mask[:4].all() and not thin.padding_mask[8:].any()
    # Between slices 1 (tissue) and 2 (padding) the nearer one's values stand.
    assert not thin.padding_mask[4:8, :, :8].any() and thin.padding_mask[4:8, :, 8:].all()
    assert (thin.array[4:8, :, 8:] == -2000).all() and (thin.array[4:8, :, 6:8] > -1500).all()


def test_a_tilted_gantry_stays_tilted(tmp_path):
    tilted = {"ImagePositionPatient": lambda k: ["-20", f"{-30.5 + k:g}", f"{112.25 + k * 5:g}"]}
    write_phantom_series(tmp_path / "in", slices=4, size=32, spacing=(0.8, 0.8, 5.0), **tilted)
    volume = read_volume(str(tmp_path / "in"))
    thin = ThinSlices(slice_spacing_mm=1).volume(volume)
    assert volume.is_sheared and thin.is_sheared and thin.spacing_mm[2] == pytest.approx(1.0)
    for k in range(4):  # every true slice keeps its corner
        np.testing.assert_allclose(thin.affine @ [0, 0, 5 * k, 1], volume.affine @ [0, 0, k, 1], atol=1e-9)


def test_what_is_near_enough_stays_as_it_is(tmp_path):
    write_phantom_series(tmp_path, slices=3, size=32)
    volume = read_volume(str(tmp_path))
    assert ThinSlices(slice_spacing_mm=2.5).volume(volume) is volume
    assert ThinSlices(slice_spacing_mm=2.5).count(3, 2.5) == 3
    assert asked_for(None, nominal=True) is None and asked_for(1, nominal=True).nominal


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "thin", True])
def test_what_is_no_distance_is_refused(value):
    with pytest.raises(BundleError, match="slice_spacing_mm must be a positive number"):
        ThinSlices(slice_spacing_mm=value)


@pytest.mark.parametrize(
    ("wanted", "depth", "spacing", "reason"),
    [
        (5.0, 9, 2.5, "more than the 2.5 mm"),
        (1.0, 1, 5.0, "two slices"),
        (0.5, 9, 5.0, "at most 8 for each"),
        (0.25, 1200, 1.0, f"and {MAX_SLICES} in all"),
        (10.0, 9, 30.0, "too far"),
    ],
)
def test_what_has_no_thin_grid_is_refused(wanted, depth, spacing, reason):
    with pytest.raises(BundleError, match=reason):
        ThinSlices(slice_spacing_mm=wanted).count(depth, spacing)


def test_the_advice_for_too_many_is_allowed():
    for depth, spacing in ((9, 5.0), (1200, 1.0)):
        with pytest.raises(BundleError) as raised:
            ThinSlices(slice_spacing_mm=0.01).count(depth, spacing)
        assert ThinSlices(slice_spacing_mm=float(raised.value.hint.split()[-1])).count(depth, spacing) > depth


def test_a_series_with_gaps_is_refused(tmp_path):
    write_phantom_series(tmp_path, slices=6, size=32, drop=(3,))
    with pytest.raises(BundleError, match="has gaps"):
        ThinSlices(slice_spacing_mm=1.0).volume(read_volume(str(tmp_path), gaps="resample"))


def test_a_real_chest_is_written_and_read_alike(lidc_thick, tmp_path):
    """Our reader, SimpleITK and dciodvfy; and at the thick slices' places nothing has changed."""
    thin = ThinSlices(slice_spacing_mm=1.0, nominal=True).volume(lidc_thick)
    result = write_derived_series(
        thin, thin.array, tmp_path, derivation=DERIVATION, now=datetime.datetime(2025, 1, 2, 3, 4, 5)
    )
    (series,) = find_series(tmp_path).series
    back = series.load()
    assert back.shape == (512, 512, 96) and not back.resampled and back.spacing_mm[2] == pytest.approx(1.0)
    np.testing.assert_array_equal(back.stored, thin.stored)
    np.testing.assert_allclose(back.affine, thin.affine, atol=1e-5)
    np.testing.assert_array_equal(back.stored[:, :, ::5], lidc_thick.stored)
    images = [pydicom.dcmread(path, stop_before_pixels=True) for path in result.paths]
    assert len({image.SOPInstanceUID for image in images} | {h.SOPInstanceUID for h in lidc_thick.headers}) == 96 + 20
    sources = [header.SOPInstanceUID for header in lidc_thick.headers]
    for k, image in enumerate(images):
        used = [item.ReferencedSOPInstanceUID for item in image.SourceImageSequence]
        assert used == (sources[k // 5 : k // 5 + 2] if k % 5 else [sources[k // 5]])
        assert [c.CodeValue for c in image.DerivationCodeSequence] == ["113085"]
        assert image.ImageType[:2] == ["DERIVED", "SECONDARY"] and image.SliceThickness == 1
        assert "thinner slices than the source's, which are 5 mm apart" in image.DerivationDescription
        assert image.ContentDate == "20250102"
    assert (
        result.uid_mapping[sources[1]] == result.sop_uids[5] and result.sop_uids[4] not in result.uid_mapping.values()
    )
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    seen = reader.Execute()
    np.testing.assert_allclose(seen.GetSpacing(), thin.spacing_mm, atol=1e-6)
    np.testing.assert_allclose(seen.GetOrigin(), thin.affine[:3, 3], atol=1e-5)
    np.testing.assert_array_equal(sitk.GetArrayViewFromImage(seen), thin.array.T)
    if not DCIODVFY.is_file():
        pytest.skip("dciodvfy is not installed")
    for path in result.paths[1::30]:
        done = subprocess.run([str(DCIODVFY), "-new", str(path)], capture_output=True, text=True, check=False)
        assert [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")] == []


def test_frames_of_a_multi_frame_object_get_thin_slices_too(tmp_path):
    folder = LIDC.parents[1] / "odd" / "enhanced_multiframe_legacy"
    if not folder.exists():
        pytest.skip("no odd series here")
    volume = find_series(folder).series[0].load()
    spacing, depth = volume.spacing_mm[2], volume.shape[2]
    thin = ThinSlices(slice_spacing_mm=spacing / 2).volume(volume)
    result = write_derived_series(
        thin, thin.array, tmp_path, derivation=DERIVATION, now=datetime.datetime(2025, 1, 2, 3, 4, 5)
    )
    back = read_volume(str(tmp_path))
    assert back.shape[2] == 2 * depth - 1 and back.spacing_mm[2] == pytest.approx(spacing / 2)
    np.testing.assert_array_equal(back.stored, thin.stored)
    np.testing.assert_array_equal(back.array[:, :, ::2], volume.array)  # the frames themselves
    for k, path in enumerate(result.paths):
        items = pydicom.dcmread(path, stop_before_pixels=True).SourceImageSequence
        frames = [int(item.ReferencedFrameNumber) for item in items]
        assert {item.ReferencedSOPInstanceUID for item in items} == {volume.headers[0].SOPInstanceUID}
        assert len(frames) == 1 + k % 2 and abs(frames[-1] - frames[0]) == k % 2
