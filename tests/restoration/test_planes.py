"""Pictures in three planes are the volume, exactly, and never more bytes than are allowed."""

import base64
import zlib

import numpy as np
import pytest

from bundle.restoration import planes as module
from bundle.restoration.nifti import NiftiSource
from bundle.restoration.planes import fitting, packed, planes, size_of, spread
from bundle.restoration.restored import RestoredSlices

SPACING = (0.5, 1.0, 3.0)


def unpacked(text: str, rows: int, columns: int) -> np.ndarray:
    flat = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
    half = rows * columns
    steps = (flat[:half] | (flat[half:].astype(np.uint16) << 8)).astype(np.uint16).view(np.int16)
    return np.cumsum(steps.reshape(rows, columns), axis=1, dtype=np.int16)


def shown(picture, name: str) -> np.ndarray:
    return unpacked(picture[name], picture["rows"], picture["columns"])


def restoration(shape, *, noise_hu=50.0):
    rng = np.random.default_rng(0)
    hu = np.round(rng.normal(40, noise_hu, shape)).astype(np.float32)
    source = NiftiSource(hu, np.diag([*SPACING, 1.0]))
    return hu, source, RestoredSlices(source, rng.integers(-20, 20, shape).astype(np.float32))


def test_packed_pictures_are_exact():
    values = np.random.default_rng(0).integers(-32000, 32000, (7, 11)).astype(np.int16)
    np.testing.assert_array_equal(unpacked(packed(values), 7, 11), values)


def test_every_plane_shows_the_volume_where_its_label_says():
    hu, source, restored = restoration((20, 16, 6))
    deviation = np.random.default_rng(1).integers(1, 30, hu.shape).astype(np.float32)
    axial, coronal, sagittal = planes(source, restored, deviation)
    assert [plane["name"] for plane in (axial, coronal, sagittal)] == ["axial", "coronal", "sagittal"]
    assert [plane["aspect"] for plane in (axial, coronal, sagittal)] == pytest.approx([2.0, 6.0, 3.0])
    assert [len(plane["pictures"]) for plane in (axial, coronal, sagittal)] == [6, 12, 12]
    # Heads up: the last slice is the top row of the other planes.
    cuts = {
        "slice": lambda a, k: a[:, :, k].T,
        "row": lambda a, j: a[:, j, ::-1].T,
        "column": lambda a, i: a[i, :, ::-1].T,
    }
    for plane in (axial, coronal, sagittal):
        assert len({picture["label"] for picture in plane["pictures"]}) == len(plane["pictures"])
        for picture in plane["pictures"]:
            kind, number = picture["label"].split()
            for name, volume, tenths in (
                ("input", hu, 1), ("change", restored.array() - hu, 10), ("deviation", deviation, 10),
            ):  # fmt: skip
                np.testing.assert_array_equal(shown(picture, name), tenths * cuts[kind](volume, int(number) - 1))


@pytest.mark.parametrize("most", [60_000, 150_000, 400_000])
def test_pictures_are_left_out_where_noise_packs_badly_whatever_the_middle_slice_holds(monkeypatch, most):
    hu, source, restored = restoration((64, 64, 24), noise_hu=500.0)
    hu[:, :, 10:14] = -1000  # the source's own: the middle packs to almost nothing
    monkeypatch.setattr(module, "MOST_BYTES", most)
    monkeypatch.setattr(module, "_CROSS_BYTES", most // 6)
    found = planes(source, restored, None)
    assert sum(size_of(picture) for plane in found for picture in plane["pictures"]) <= most
    axial = found[0]["pictures"]
    assert found[0]["name"] == "axial" and 1 < len(axial) < 24
    one = max(map(size_of, axial))
    assert sum(map(size_of, axial)) > most * 4 / 6 - 2 * one, "what there is room for is used"


def test_what_fits_is_evenly_spread():
    pictures = [{"input": "x" * 10, "label": ""} for _ in range(9)]
    assert fitting(pictures, 90) == pictures and 6 < len(fitting(pictures, 89)) < 9
    assert fitting(pictures, 10) == [pictures[4]] and fitting(pictures, 9) == []
    assert spread(9, 3) == [2, 4, 6] and spread(2, 5) == [0, 1]


def test_a_large_matrix_is_shown_with_fewer_pixels_in_its_shape(monkeypatch):
    monkeypatch.setattr(module, "_MOST_PIXELS", 16)
    hu, source, restored = restoration((40, 16, 6))
    axial, coronal, sagittal = planes(source, restored, None)
    assert axial["pictures"][0]["columns"] == 14 and axial["pictures"][0]["rows"] == 16
    np.testing.assert_array_equal(shown(axial["pictures"][2], "input"), hu[::3, :, 2].T)
    for plane, across, along in (
        (axial, 40 * 0.5, 16 * 1.0),
        (coronal, 40 * 0.5, 6 * 3.0),
        (sagittal, 16 * 1.0, 6 * 3.0),
    ):
        picture = plane["pictures"][0]
        assert plane["aspect"] * picture["rows"] / picture["columns"] == pytest.approx(along / across, rel=0.06)
