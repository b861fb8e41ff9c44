from pathlib import Path

import numpy as np
import pydicom
import pytest
from compressed_series import HTJ2K, write_compressed_series
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from phantom_series import write_phantom_series
from pydicom import uid

from bundle.dicom.index import find_series, read_volume
from bundle.errors import BundleError

SYNTAXES = [
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.RLELossless,
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
]
MADE_HERE = [*HTJ2K, uid.JPEGLossless, uid.JPEGLosslessSV1]


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name)
def test_every_transfer_syntax_is_exact(tmp_path, syntax):
    hu = write_phantom_series(tmp_path, slices=3, transfer_syntax=syntax)
    np.testing.assert_array_equal(read_volume(str(tmp_path)).array, hu)


@pytest.mark.parametrize("syntax", MADE_HERE, ids=lambda syntax: syntax.name)
def test_syntaxes_that_nothing_here_encodes_are_exact(tmp_path, syntax):
    hu = write_compressed_series(tmp_path, syntax)
    np.testing.assert_array_equal(read_volume(str(tmp_path)).array, hu)


def test_mixed_syntaxes_are_exact(tmp_path):
    hu = write_compressed_series(tmp_path, uid.JPEGLosslessSV1, slices=4)
    write_compressed_series(tmp_path / "other", uid.ExplicitVRLittleEndian, slices=4)
    for path in (tmp_path / "other").iterdir():
        if pydicom.dcmread(path).InstanceNumber in (1, 3, 4):
            native = pydicom.dcmread(path)
            native.PixelRepresentation = 0
            native.save_as(tmp_path / path.name)
        path.unlink()
    np.testing.assert_array_equal(read_volume(str(tmp_path)).array, hu)


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("syntax", [HTJ2K[0], uid.JPEGLosslessSV1], ids=lambda s: s.name)
def test_a_cut_stream_with_an_end_marker_is_refused(tmp_path, syntax, keep):
    write_compressed_series(tmp_path, syntax)
    path = Path(find_series(tmp_path).series[0].paths[1])
    dataset = pydicom.dcmread(path)
    stream = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset.PixelData = pydicom.encaps.encapsulate([stream[: int(len(stream) * keep)] + b"\xff\xd9"])
    dataset.save_as(path)
    with pytest.raises(BundleError, match="slice 1"):
        read_volume(str(tmp_path))


def test_pixels_that_change_their_layout_behind_the_index_are_refused(tmp_path):
    write_phantom_series(tmp_path, slices=3)
    series = find_series(tmp_path).series[0]
    dataset = pydicom.dcmread(series.paths[2])
    dataset.PixelRepresentation = 0
    dataset.save_as(series.paths[2])
    with pytest.raises(BundleError, match=r"slice 2 .* changed since"):
        series.load()


def test_monochrome1_inverts_the_display_not_the_hu(tmp_path):
    hu = write_phantom_series(tmp_path, slices=3, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_volume(str(tmp_path)).array, hu)


def test_padding_is_marked_whatever_the_sign_of_its_element(tmp_path):
    hu = write_phantom_series(tmp_path, slices=3, PixelPaddingValue=24)
    assert read_volume(str(tmp_path)).padding_mask.sum() == (hu == -1000).sum() > 0
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("syntax", [uid.JPEGLSLossless, uid.JPEG2000Lossless, uid.RLELossless], ids=lambda s: s.name)
def test_a_cut_stream_is_refused(tmp_path, syntax, keep):
    write_phantom_series(tmp_path, slices=3, transfer_syntax=syntax)
    path = Path(find_series(tmp_path).series[0].paths[1])
    dataset = pydicom.dcmread(path)
    stream = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset.PixelData = pydicom.encaps.encapsulate([stream[: int(len(stream) * keep)]])
    dataset.save_as(path)
    with pytest.raises(BundleError, match="slice 1"):
        read_volume(str(tmp_path))


@pytest.mark.parametrize("syntax", [uid.JPEGLSLossless, uid.JPEG2000Lossless], ids=lambda s: s.name)
def test_a_stream_of_another_size_is_refused(tmp_path, syntax):
    write_phantom_series(tmp_path, slices=3, transfer_syntax=syntax)
    for path in tmp_path.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.Rows = 32
        dataset.save_as(path)
    with pytest.raises(BundleError, match="unlike the header"):
        read_volume(str(tmp_path))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_bytes_raise_nothing_but_bundle_errors(tmp_path, seed):
    rng = np.random.default_rng(seed)
    folder = tmp_path / str(seed)
    write_phantom_series(folder, slices=3, size=32, transfer_syntax=SYNTAXES[seed % len(SYNTAXES)])
    path = sorted(folder.iterdir())[seed % 3]
    content = bytearray(path.read_bytes())
    for place in rng.integers(0, len(content), 3):
        content[place] = rng.integers(256)
    path.write_bytes(content[: rng.integers(1, 2 * len(content))])
    try:
        for series in find_series(folder).series:
            series.load()
    except BundleError as error:
        assert "\n" not in str(error)
