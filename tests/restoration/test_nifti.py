"""NIfTI written slice by slice is what nibabel would have written."""

import nibabel
import numpy as np
import pytest

from bundle.restoration.nifti import NiftiSource, write_nifti

AFFINE = np.array([[-0.8, 0, 0, 12.5], [0, -0.7, 0.1, -3], [0, 0, 2.5, 40], [0, 0, 0, 1]])


@pytest.fixture
def source():
    return NiftiSource(np.random.default_rng(0).normal(0, 300, (7, 5, 4)).astype(np.float32), AFFINE)


class Doubled:
    shape = (7, 5, 4)

    def __init__(self, source):
        self.source = source

    def __getitem__(self, index):
        return 2 * self.source.slice_hu(index[2])


def test_values_and_geometry_come_back(tmp_path, source):
    write_nifti(tmp_path / "new" / "a.nii.gz", Doubled(source), source)
    image = nibabel.load(tmp_path / "new" / "a.nii.gz")
    expected = 2 * np.stack([source.slice_hu(k) for k in range(4)], axis=2)
    np.testing.assert_array_equal(np.asarray(image.dataobj), expected)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-6)
    np.testing.assert_allclose(image.header.get_zooms(), source.spacing_mm, rtol=0.01)
    assert image.get_data_dtype() == np.float32 and image.header["sform_code"] == 1


def test_the_same_values_give_the_same_bytes(tmp_path, source):
    for name in ("a", "b"):
        write_nifti(tmp_path / f"{name}.nii.gz", Doubled(source), source)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
