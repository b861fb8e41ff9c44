import io

import numpy as np
import pydicom
import pytest
from phantom_series import write_phantom_series
from pydicom import uid
from pydicom.encaps import encapsulate, generate_frames

from bundle.dicom.codecs import JPEG, JPEG_2000, JPEG_LS, RLE
from bundle.dicom.elements import Unusable
from bundle.dicom.layouts import PixelLayout
from bundle.dicom.streams import check_stream, compressed_frames, frame_of_fragments

DELIMITER = b"\xfe\xff\xdd\xe0" + bytes(4)


@pytest.mark.parametrize("fragments", [1, 2, 7])
@pytest.mark.parametrize("table", [True, False])
def test_one_frame_is_what_a_parser_gives(fragments, table):
    frame = np.random.default_rng(fragments).bytes(1000)
    value = encapsulate([frame], fragments_per_frame=fragments, has_bot=table)
    wanted = next(generate_frames(value, number_of_frames=1))
    assert frame_of_fragments(value + DELIMITER) == wanted == frame
    assert frame_of_fragments(value + DELIMITER + b"something behind it") == frame


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value,
        lambda value: value[:-3] + DELIMITER,
        lambda value: b"",
        lambda value: value[:8] + DELIMITER,
        lambda value: b"\0" + value + DELIMITER,
        lambda value: value[:12] + b"\xff\xff\xff\x7f" + value[16:] + DELIMITER,
    ],
    ids=["no delimiter", "cut", "empty", "no fragment", "shifted", "too long"],
)
def test_fragments_that_do_not_add_up_are_refused(change):
    with pytest.raises(Unusable, match="fragments"):
        frame_of_fragments(change(encapsulate([bytes(100)])))


def test_frames_of_an_object_and_damage(tmp_path):
    write_phantom_series(tmp_path, slices=1, transfer_syntax=uid.RLELossless)
    dataset = pydicom.dcmread(next(tmp_path.iterdir()))
    (frame,) = compressed_frames(dataset)
    assert frame == frame_of_fragments(dataset.PixelData + DELIMITER)
    dataset.PixelData = b"nothing like it"
    with pytest.raises(Unusable, match="fragments"):
        compressed_frames(dataset)


def stream_of(tmp_path, syntax):
    write_phantom_series(tmp_path, slices=1, transfer_syntax=syntax)
    dataset = pydicom.dcmread(io.BytesIO(next(tmp_path.iterdir()).read_bytes()))
    layout = PixelLayout(dataset.Rows, dataset.Columns, 16, dataset.BitsStored, dataset.BitsStored - 1, True)
    return compressed_frames(dataset)[0], layout


@pytest.mark.parametrize(
    ("syntax", "family"), [(uid.JPEGLSLossless, JPEG_LS), (uid.JPEG2000Lossless, JPEG_2000), (uid.RLELossless, RLE)]
)
def test_a_stream_is_checked_against_the_header(tmp_path, syntax, family):
    stream, layout = stream_of(tmp_path, syntax)
    check_stream(stream, layout, family)
    wrong = [PixelLayout(layout.rows, layout.columns, 32, 20, 19, True)]
    if family != RLE:
        wrong.append(PixelLayout(layout.rows + 1, layout.columns, 16, layout.stored, layout.stored - 1, True))
        with pytest.raises(Unusable, match="end marker"):
            check_stream(stream[:-40], layout, family)
    for other in wrong:
        with pytest.raises(Unusable, match="pixel data"):
            check_stream(stream, other, family)


@pytest.mark.parametrize("family", [JPEG, JPEG_LS, JPEG_2000])
@pytest.mark.parametrize("stream", [b"\xff\xd9", b"\xff\xd8" + b"\xff" * 40 + b"\xff\xd9", bytes(60) + b"\xff\xd9"])
def test_what_is_no_stream_is_refused(family, stream):
    with pytest.raises(Unusable):
        check_stream(stream, PixelLayout(4, 4, 16, 12, 11, False), family)
