import datetime
from pathlib import Path

import numpy as np
import pydicom
import pytest
from phantom_series import phantom_hu, write_phantom_series

from bundle.dicom.index import find_series, read_volume
from bundle.dicom.writer import Derivation, write_derived_series
from bundle.errors import BundleError

GE_HEAD_TILT = Path(__file__).resolve().parents[3] / "shared" / "data" / "ct" / "ge_head_tilt"
DERIVATION = Derivation(
    description="noise reduced", series_suffix="enhanced", settings_digest="ab", weights_digest="cd",
    software_version="0",
)  # fmt: skip


def write_uneven(folder, places, **tags):
    """A series with slices at `places`, mm above the first; returns its HU."""
    tags = {"ImagePositionPatient": lambda k: ["-20", "-30.5", f"{112.25 + places[k]:.10g}"]} | tags
    return write_phantom_series(folder, hu=phantom_hu(slices=len(places), size=32), **tags)


def test_true_slices_keep_their_values_and_others_lie_between(tmp_path):
    hu = write_phantom_series(tmp_path, size=32, drop=(5, 6), RescaleSlope=lambda k: str(1 + k % 2))
    for gaps in ("refuse", "resample"):
        index = find_series(tmp_path, gaps=gaps)
        assert bool(index.series) == (gaps == "resample")
    series = index.series[0]
    volume = series.load()
    assert volume.resampled and series.shape == volume.shape == hu.shape
    assert "2 interpolated" in series.notes[0] and "7.5 mm at 122.25..129.75" in series.notes[0]
    np.testing.assert_allclose(volume.affine, series.affine)
    np.testing.assert_allclose(np.diag(volume.affine), [0.8, 0.8, 2.5, 1])
    whole = volume.stored * volume.slope + volume.intercept
    np.testing.assert_array_equal(whole, volume.array)
    true = read_volume([str(path) for path in tmp_path.iterdir()], gaps="resample")
    np.testing.assert_array_equal(true.array, volume.array)
    for k in range(12):
        if k not in (5, 6):
            slope = 1 + k % 2
            np.testing.assert_array_equal(volume.array[:, :, k], (hu[:, :, k] + 1024) * slope - 1024)
            assert volume.is_true_slice(k)
    a, b = volume.array[:, :, 4].astype(float), volume.array[:, :, 7]
    np.testing.assert_allclose(volume.array[:, :, 5], a + (b - a) / 3, atol=0.5 * volume.slope[5] + 1e-3)
    assert volume.sources(5) == (4, 5) and volume.source_headers[5].InstanceNumber == 8
    assert [float(v) for v in volume.headers[5].ImagePositionPatient] == [-20, -30.5, 112.25 + 5 * 2.5]
    assert volume.headers[5].SliceThickness == 7.5 and volume.headers[4].SliceThickness == 2.5
    assert volume.headers[5].SpacingBetweenSlices == 2.5 and volume.headers[5].InstanceNumber == 6


def test_padding_is_never_interpolated(tmp_path):
    hu = phantom_hu(slices=6, size=32)
    hu[:4] = -2000
    hu[:6, :, 4:] = -2000
    hu[20, 20, :] = np.linspace(-2900, -1000, 6).round()
    write_phantom_series(tmp_path, hu=hu, drop=(3,), PixelPaddingValue=-976)
    volume = read_volume(str(tmp_path), gaps="resample")
    assert (volume.array[:4, :, 3] == -2000).all() and volume.padding_mask[:4, :, 3].all()
    assert set(np.unique(volume.array[4:6, :, 3])) <= set(np.unique(hu[4:6, :, [2, 4]]))
    assert (volume.padding_mask == (volume.stored == -976)).all()


def test_a_resampled_series_is_written_as_one(tmp_path):
    write_phantom_series(tmp_path / "in", size=32, drop=(5,), SliceLocation=lambda k: str(-10 + 2.5 * k))
    volume = read_volume(str(tmp_path / "in"), gaps="resample")
    result = write_derived_series(
        volume, volume.array, tmp_path / "out", derivation=DERIVATION, now=datetime.datetime(2025, 1, 2)
    )
    back = read_volume(str(tmp_path / "out"))  # regular: nothing to resample
    np.testing.assert_array_equal(back.stored, volume.stored)
    np.testing.assert_allclose(back.affine, volume.affine, atol=1e-6)
    images = [pydicom.dcmread(path) for path in result.paths]
    assert len({image.SOPInstanceUID for image in images}) == 12 == len(images)
    for k, image in enumerate(images):
        assert [(c.CodeValue, c.CodingSchemeDesignator) for c in image.DerivationCodeSequence] == [("113085", "DCM")]
        assert image.SpacingBetweenSlices == 2.5 and image.InstanceNumber == k + 1
        assert image.SliceLocation == -10 + 2.5 * k
        assert image.SliceThickness == (5 if k == 5 else 2.5)
        assert "resampled" in image.DerivationDescription and image.DerivationDescription.startswith("noise reduced")
        assert ("interpolated" in image.DerivationDescription) == (k == 5)
        references = [item.ReferencedSOPInstanceUID for item in image.SourceImageSequence]
        true = [header.SOPInstanceUID for header in volume.source_headers]
        assert references == ([true[4], true[5]] if k == 5 else [true[k if k < 5 else k - 1]])
        assert image.SourceImageSequence[0].SpatialLocationsPreserved == ("NO" if k == 5 else "YES")
    assert result.sop_uids[5] not in result.uid_mapping.values() and result.sop_uids[4] in result.uid_mapping.values()


def test_an_end_off_the_grid_is_said(tmp_path):
    write_uneven(tmp_path, [0, 1, 2, 3, 4.7])
    series = find_series(tmp_path, gaps="resample").series[0]
    assert any("ends 0.30 mm from" in note for note in series.notes)
    volume = series.load()
    np.testing.assert_array_equal(volume.stored[:, :, -1], read_volume(str(tmp_path), gaps="resample").stored[:, :, -1])
    assert not volume.is_true_slice(5) and volume.sources(5) == (4,)


def test_other_values_of_the_option_are_refused(tmp_path):
    write_phantom_series(tmp_path, slices=3, size=32)
    with pytest.raises(BundleError, match="gaps must be refuse or resample"):
        find_series(tmp_path, gaps="interpolate")
    with pytest.raises(BundleError, match="gaps must be refuse or resample"):
        read_volume([str(path) for path in tmp_path.iterdir()], gaps="interpolate")


@pytest.mark.skipif(not GE_HEAD_TILT.exists(), reason="no real data here")
def test_a_real_head_whose_spacing_changes():
    assert "irregular" in find_series(GE_HEAD_TILT).refused[0].reason
    index = find_series(GE_HEAD_TILT, gaps="resample")
    series = index.series[0]
    assert (
        not index.refused and series.shape == (512, 512, 37) and series.spacing_mm[2] == pytest.approx(4.002, abs=1e-3)
    )
    assert (series.grid.origins.exact[:14]).all() and series.grid.origins.exact[-1]
