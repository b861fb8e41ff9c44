"""Slab by slab, a volume is resampled to what MONAI makes of all of it at once, there and back."""

import itertools

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Invertd, Spacing

from bundle.data import resampling
from bundle.data.resampling import SlabResample
from bundle.data.transforms import NetworkSpacingd
from bundle.pages import Scratch, plain_pages


def affine_of(tilt):
    affine = np.diag([0.7, -0.8, 2.5, 1.0])
    affine[1, 2] = np.tan(np.radians(tilt)) * 2.5
    affine[:3, 3] = (-31.5, 33.25, 740.0)
    return affine


def scan(tilt, kind=np.float32):
    values = np.random.default_rng(5).normal(0, 200, (1, 33, 37, 26)).round().astype(kind)
    return MetaTensor(torch.from_numpy(values), affine=affine_of(tilt))


@pytest.mark.parametrize("tilt", [0.0, 15.0])
@pytest.mark.parametrize("pixdim", [(1.1, 1.1, -1.0), (0.7, 0.8, 1.0), (0.5, 0.9, 6.0)])
@pytest.mark.parametrize("at_once", [1, 3, 8, 1000])
def test_slabs_are_the_whole(monkeypatch, tmp_path, tilt, pixdim, at_once):
    monkeypatch.setattr(resampling, "_AT_ONCE", at_once)
    image = scan(tilt, np.int16)
    expected = Spacing(pixdim=pixdim, mode="bilinear")(image)
    for pages in (plain_pages, Scratch(tmp_path)):
        transform = NetworkSpacingd("image", pixdim, pages=pages)
        found = transform({"image": image})["image"]
        assert found.dtype == torch.float32 and found.shape == expected.shape
        np.testing.assert_allclose(found.affine, expected.affine, atol=1e-9)
        # Rounding of coordinates to double precision, times the steps of this noise.
        torch.testing.assert_close(found.as_tensor(), expected.as_tensor(), atol=1e-3, rtol=0)
        difference = MetaTensor(found.as_tensor() * 0.5, affine=found.affine)
        back = Invertd("difference", transform=transform, orig_keys="image", nearest_interp=False)
        result = back({"image": found, "difference": difference})["difference"]
        plain = Spacing(pixdim=pixdim, mode="bilinear")
        of_whole = plain.inverse(
            MetaTensor(
                plain(image).as_tensor() * 0.5, meta=expected.meta, applied_operations=plain(image).applied_operations
            )
        )
        assert result.shape == image.shape
        np.testing.assert_allclose(result.affine, image.affine, atol=1e-9)
        torch.testing.assert_close(result.as_tensor(), of_whole.as_tensor(), atol=1e-3, rtol=0)


def test_a_batch_or_a_spline_is_left_to_monai():
    image = scan(0.0)
    target = torch.as_tensor(affine_of(0.0) @ np.diag([2, 2, 1, 1]))
    for mode, one in itertools.product((3, "bilinear"), (image, torch.cat([image, image]))):
        found = SlabResample(mode=mode)(one, target, (17, 19, 26))
        assert found.shape == (len(one), 17, 19, 26)


def test_no_more_slices_are_looked_at_than_are_needed(monkeypatch):
    """Memory goes with what MONAI is given at a time."""
    given = []
    plain = resampling.SpatialResample.__call__

    def noted(self, img, *args, **kwargs):
        given.append(img.shape[-1])
        return plain(self, img, *args, **kwargs)

    monkeypatch.setattr(resampling.SpatialResample, "__call__", noted)
    image = MetaTensor(torch.zeros(1, 12, 12, 300), affine=affine_of(0.0))
    NetworkSpacingd("image", (1.0, 1.0, 2.5))({"image": image})
    assert len(given) > 30 and max(given) <= resampling._AT_ONCE + 4
