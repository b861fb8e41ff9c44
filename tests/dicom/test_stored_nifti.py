"""Voxels read plane by plane are nibabel's, wherever they lie."""

import gzip

import nibabel
import numpy as np
import pytest

from bundle.dicom.stored_nifti import read_nifti
from bundle.errors import BundleError
from bundle.pages import Scratch, plain_pages

AFFINE = np.array([[-0.8, 0, 0, 12.5], [0, -0.7, 0.1, -3], [0, 0, 2.5, 40], [0, 0, 0, 1]])
HU = np.random.default_rng(0).integers(-1024, 1500, (9, 7, 5))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", ["<i2", ">i2", "<u2", "<i4", "<f4", "<f8"])
@pytest.mark.parametrize("on_disk", [False, True])
def test_values_are_those_of_nibabel(tmp_path, suffix, kind, on_disk):
    scale = {"slope": 1.0, "intercept": -1024.0} if "u" in kind else {}
    header = nibabel.Nifti1Header(endianness=">" if ">" in kind else "<")
    header.set_data_shape(HU.shape)
    header.set_data_dtype(np.dtype(kind))
    header.set_sform(AFFINE, 1)
    header.set_slope_inter(scale.get("slope", 1), scale.get("intercept", 0))
    header["magic"], header["vox_offset"] = b"n+1", 352
    data = bytes(header.binaryblock) + bytes(4) + (HU - scale.get("intercept", 0)).astype(kind).tobytes(order="F")
    path = tmp_path / f"scan{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    expected = np.asarray(nibabel.load(path).dataobj)
    np.testing.assert_array_equal(expected, HU)
    found = read_nifti(path, Scratch(tmp_path) if on_disk else plain_pages)
    assert found.shape == HU.shape
    np.testing.assert_allclose(found.affine_ras, AFFINE, atol=1e-6)
    for out in (np.zeros(HU.shape, np.int16), np.zeros(HU.shape[::-1], np.float32).T):
        np.testing.assert_array_equal(found.hu(out=out), expected)


def test_whole_numbers_are_never_made_of_fractions(tmp_path):
    values = HU.astype(np.float32)
    values[2, 3, 4] += 0.25
    nibabel.save(nibabel.Nifti1Image(values, AFFINE), tmp_path / "a.nii.gz")
    found = read_nifti(tmp_path / "a.nii.gz")
    with pytest.raises(ValueError):
        found.hu(out=np.zeros(HU.shape, np.int16))
    np.testing.assert_array_equal(found.hu(out=np.zeros(HU.shape, np.float32)), values)
    values[2, 3, 4] = 40_000.0  # metal, beyond 16 bits
    nibabel.save(nibabel.Nifti1Image(values, AFFINE), tmp_path / "b.nii.gz")
    with pytest.raises(ValueError):
        read_nifti(tmp_path / "b.nii.gz").hu(out=np.zeros(HU.shape, np.int16))


def test_a_fourth_axis_of_one_is_none(tmp_path):
    nibabel.save(nibabel.Nifti1Image(HU.astype(np.int16)[..., None], AFFINE), tmp_path / "a.nii")
    found = read_nifti(tmp_path / "a.nii")
    np.testing.assert_array_equal(found.hu(out=np.zeros(HU.shape, np.int16)), HU)


@pytest.mark.parametrize("damage", ["cut", "flipped", "short"])
def test_damaged_files_are_refused(tmp_path, damage):
    nibabel.save(nibabel.Nifti1Image(HU.astype(np.int16), AFFINE), tmp_path / "a.nii")
    data = (tmp_path / "a.nii").read_bytes()
    archive = bytearray(gzip.compress(data))
    if damage == "cut":
        archive = archive[: len(archive) // 2]
    elif damage == "flipped":
        archive[-6] ^= 0xFF  # its checksum
    path = tmp_path / ("Doe.nii" if damage == "short" else "Doe.nii.gz")
    path.write_bytes(data[:-30] if damage == "short" else bytes(archive))
    with pytest.raises(BundleError, match="cannot be read as NIfTI"):
        read_nifti(path)
