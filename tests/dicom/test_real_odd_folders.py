"""The small unusual inputs of real scanners and test suites (shared data, not in the repository)."""

from pathlib import Path

import numpy as np
import pydicom
import pytest

from bundle.dicom.elements import Unusable
from bundle.dicom.index import find_series
from bundle.dicom.series import stored_values
from bundle.dicom.slices import read_slices
from bundle.dicom.sources import Sources
from bundle.dicom.volume import Volume

ODD = Path(__file__).resolve().parents[3] / "shared" / "data" / "odd"
# Folder -> numbers of slices of its volumes, and words of the reasons for what is not used.
EXPECTED: dict[str, tuple[list[int], list[str]]] = {
    "big_endian": ([2], []),
    "coronal_reformat_ge": ([], ["single slice"]),
    "deflated": ([3], []),
    "duplicate_slice": ([3], []),
    "enhanced_multiframe_legacy": ([8], []),
    "enhanced_multiframe_perfusion": ([], ["RescaleType is not HU"]),
    "gantry_tilt_siemens": ([4], []),
    "j2k_pixelrep_mismatch": ([], ["single slice"]),
    "localizer_siemens": ([], ["localizer"]),
    "missing_slice_ge": ([], ["1 missing slice (gap): 10 mm"]),
    "mixed_series": ([2, 2], ["Modality is MR"]),
    "non_ct_mr": ([], ["Modality is MR"]),
    "rle": ([3], []),
    "same_position": ([], ["share the same position"]),
    "small_128": ([], ["single slice"]),
    "undecodable_j2k": ([], ["single slice"]),
}
pytestmark = pytest.mark.skipif(not ODD.is_dir(), reason="no shared data")


def test_no_folder_is_left_out():
    assert {path.name for path in ODD.iterdir() if path.is_dir()} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_each_is_a_right_volume_or_a_named_refusal(name):
    index = find_series(ODD / name)
    depths, words = EXPECTED[name]
    assert [series.shape[2] for series in index.series] == depths
    assert len(index.refused) == len(words)
    for refusal, word in zip(index.refused, words, strict=True):
        assert word in refusal.reason
    for series in index.series:
        volume = series.load()
        np.testing.assert_array_equal(volume.array, by_pydicom(volume, set(series.paths)))


def by_pydicom(volume: Volume, paths: set[str]) -> np.ndarray:
    """HU (H, W, D) of the same files, by pydicom's own decoding, each put where its position says."""
    hu = np.full(volume.shape, np.nan, np.float32)
    for path in paths:
        dataset = pydicom.dcmread(path)
        frames = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
        groups = dataset.get("PerFrameFunctionalGroupsSequence", [None] * len(frames))
        for values, group in zip(frames, groups, strict=True):
            place = dataset if group is None else group.PlanePositionSequence[0]
            scale = dataset if group is None else group.get("PixelValueTransformationSequence", [None])[0]
            scale = scale or dataset.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence[0]
            position = np.array(place.ImagePositionPatient, float)
            index = np.linalg.solve(volume.affine, [*position, 1])
            np.testing.assert_allclose(index[:2], 0, atol=0.01)
            k = round(index[2])
            hu[:, :, k] = values.T * float(scale.RescaleSlope) + float(scale.RescaleIntercept)
    return hu


@pytest.mark.parametrize("name", ["j2k_pixelrep_mismatch", "undecodable_j2k"])
def test_pixels_that_decoders_differ_on_are_exact_or_refused(name):
    (path,) = (ODD / name).iterdir()
    with path.open("rb") as stream:
        (image,) = read_slices(stream, str(path))
    with Sources() as sources:
        try:
            values = stored_values(image, sources)
        except Unusable as error:
            assert name == "undecodable_j2k" and "cannot be decoded" in error.message
            return
    # The stream says unsigned, the header signed; the header counts, as in pydicom, which mends the sign too.
    assert name == "j2k_pixelrep_mismatch" and values.min() < 0
    np.testing.assert_array_equal(values, pydicom.dcmread(path).pixel_array)
