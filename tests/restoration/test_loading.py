"""Loading for restoration: exact HU in as few bytes as hold them, and something to add a difference to."""

import nibabel
import numpy as np
import pytest
import torch
from phantom_series import phantom_hu, write_phantom_series

from bundle.dicom.volume import Volume
from bundle.restoration.loading import LoadCompactSeriesd


@pytest.mark.parametrize(
    ("tags", "kind"), [({}, torch.int16), ({"RescaleSlope": "0.5", "RescaleIntercept": "-1024"}, torch.float32)]
)
def test_whole_hu_are_whole_numbers_and_others_floats(tmp_path, tags, kind):
    write_phantom_series(tmp_path, slices=4, **tags)
    image = LoadCompactSeriesd("image")({"image": str(tmp_path)})["image"]
    volume = image.meta["volume"]
    assert isinstance(volume, Volume) and image.dtype is kind and image.shape == (1, 64, 64, 4)
    np.testing.assert_array_equal(image[0].numpy().astype(np.float32), volume.array)
    np.testing.assert_allclose(np.asarray(image.affine), volume.affine_ras)


def test_nifti_brings_its_own_source(tmp_path):
    hu, affine = phantom_hu(slices=4), np.diag([-0.8, -0.8, 2.5, 1.0])
    image = nibabel.Nifti1Image(hu, affine)
    image.set_sform(affine, code=1)
    nibabel.save(image, tmp_path / "ct.nii.gz")
    loaded = LoadCompactSeriesd("image")({"image": str(tmp_path / "ct.nii.gz")})["image"]
    source = loaded.meta["volume"]
    assert source.shape == hu.shape and source.spacing_mm == pytest.approx((0.8, 0.8, 2.5))
    np.testing.assert_array_equal(source.slice_hu(2), hu[:, :, 2])
