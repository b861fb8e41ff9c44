from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from phantom_series import phantom_hu

from bundle.data.alignment import PartnerOnGridd, align
from bundle.degrade.slabs import ThickSlices
from bundle.dicom.reader import LoadSeriesd
from bundle.errors import BundleError

SPACING = (1.5, 1.5, 1.0)
CT = Path(__file__).resolve().parents[3] / "shared" / "data" / "ct"


def image(volume, affine=None):
    affine = np.diag([*SPACING, 1.0]) if affine is None else affine
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(volume, np.float32))[None], affine=torch.from_numpy(affine))


@pytest.fixture(scope="module")
def hu():
    """The phantom, with structure along its slices."""
    volume = phantom_hu(slices=40, size=64)
    volume[10:20, 30:40] += 300 * np.sin(np.arange(40) / 3)
    return volume


def moved(mm, axis):
    affine = np.diag([*SPACING, 1.0])
    affine[axis, 3] += mm
    return affine


def thick(volume, thickness=4.0):
    """The thick series itself, and its affine."""
    slabs = volume @ ThickSlices(thickness_mm=thickness).slab_weights(volume.shape[2], SPACING[2]).T.astype(np.float32)
    affine = np.diag([SPACING[0], SPACING[1], thickness, 1.0])
    affine[2, 3] = (thickness - SPACING[2]) / 2
    return slabs, affine


def test_the_same_grid_passes_bit_for_bit(hu):
    target, partner = align(image(hu), image(hu + 5))
    assert np.array_equal(target[0], hu) and np.array_equal(partner[0], hu + 5)


def test_data_without_a_partner_pass(hu):
    data = {"image": image(hu)}
    assert PartnerOnGridd()(data)["image"] is data["image"]


def test_thick_slices_come_out_as_the_degradation_makes_them(hu):
    """The simulated degraded side and a real thick series go through the same: linear, at the true positions."""
    slabs, affine = thick(hu)
    target, partner = align(image(hu), image(slabs, affine))
    simulated = ThickSlices(thickness_mm=4.0).apply(hu, step_mm=1.0)
    first = int(np.rint(float(target.affine[2, 3])))
    assert target.shape == partner.shape and target.shape[3] >= 36
    np.testing.assert_allclose(partner[0], simulated[:, :, first : first + target.shape[3]], atol=0.01)
    assert np.array_equal(target[0], hu[:, :, first : first + target.shape[3]])
    assert torch.equal(target.affine, partner.affine)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_other_places_are_followed_and_the_overlap_is_cropped(hu, axis):
    """The partner begins five voxels later: what both show is left, and it is the same."""
    cut = np.take(hu, range(5, hu.shape[axis]), axis=axis)
    target, partner = align(image(hu), image(cut, moved(5 * SPACING[axis], axis)))
    assert np.array_equal(target[0], cut) and np.array_equal(partner[0], cut)
    assert float(target.affine[axis, 3]) == pytest.approx(5 * SPACING[axis])


def test_flipped_and_finer_grids(hu):
    flipped = np.diag([*SPACING, 1.0])
    flipped[2, 2], flipped[2, 3] = -1.0, 39.0
    _, partner = align(image(hu), image(hu[:, :, ::-1], flipped))
    np.testing.assert_allclose(partner[0], hu, atol=0.05)
    finer = np.repeat(np.repeat(hu, 2, axis=0), 2, axis=1)
    affine = np.diag([SPACING[0] / 2, SPACING[1] / 2, 1.0, 1.0])
    affine[:2, 3] = -SPACING[0] / 4
    _, partner = align(image(hu), image(finer, affine))
    np.testing.assert_allclose(partner[0], hu, atol=0.05)


@pytest.mark.parametrize(("mm", "axis"), [(4.5, 0), (4.5, 1), (5.0, 2)])
def test_misregistration_is_refused_with_its_size(hu, mm, axis):
    with pytest.raises(BundleError, match=r"misregistered by about|same anatomy"):
        align(image(hu), image(hu, moved(mm, axis)))


def test_a_wrong_partner_is_refused(hu):
    other = phantom_hu(slices=40, size=64, seed=5).swapaxes(0, 1)[::-1]
    with pytest.raises(BundleError, match="does not show the same anatomy"):
        align(image(hu), image(other))


def test_no_overlap_and_another_angle_are_refused(hu):
    with pytest.raises(BundleError, match="overlaps with 0 of 40 slices"):
        align(image(hu), image(hu, moved(100, 2)))
    with pytest.raises(BundleError, match="overlaps with 2 of 40 slices"):
        align(image(hu), image(hu, moved(38, 2)))
    turned = np.diag([*SPACING, 1.0])
    turned[:2, :2] = np.array([[0.99, -0.14], [0.14, 0.99]]) * 1.5
    with pytest.raises(BundleError, match="at another angle"):
        align(image(hu), image(hu, turned))


@pytest.mark.full
@pytest.mark.skipif(not CT.is_dir(), reason="no real CT here")
def test_a_real_kernel_pair_and_a_real_wrong_partner():
    load = LoadSeriesd("image")
    smooth, sharp = (load({"image": str(CT / name)})["image"] for name in ("lungdx_a0002", "lungdx_a0002_b70f"))
    target, partner = align(smooth, sharp)
    assert np.array_equal(target, smooth) and np.array_equal(partner, sharp)
    other = load({"image": str(CT / "lungdx_a0001")})["image"]
    with pytest.raises(BundleError, match="same anatomy"):
        align(smooth, image(np.asarray(other)[0], np.asarray(smooth.affine)))
