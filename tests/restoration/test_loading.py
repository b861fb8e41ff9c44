"""Loading for restoration: exact HU in as few bytes as hold them, and something to add a difference to."""

import nibabel
import numpy as np
import pytest
import torch
from phantom_series import phantom_hu, write_phantom_series
from tiny_workflows import run_tiny, write_tiny_weights

from bundle.data.transforms import SlicesLastOrientationd
from bundle.dicom.volume import Volume
from bundle.pages import Scratch
from bundle.restoration.api import load_restorer
from bundle.restoration.loading import LoadCompactSeriesd, turned, turned_to


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


ORIENTATIONS = {
    "axial": ["1", "0", "0", "0", "1", "0"],
    "prone": ["-1", "0", "0", "0", "-1", "0"],
    "head_down": ["-1", "0", "0", "0", "1", "0"],
    "coronal": ["1", "0", "0", "0", "0", "-1"],
    "turned": ["0", "-1", "0", "1", "0", "0"],
    "oblique": ["0.96", "0.28", "0", "-0.28", "0.96", "0"],
}


def placed(orientation):
    """Positions along the slice normal of an orientation."""
    row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    return lambda k: [f"{value:g}" for value in np.cross(row, column) * 2.5 * k]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_study_on_disk_is_in_reading_order_and_nothing_is_left_to_turn(tmp_path, orientation):
    vectors = ORIENTATIONS[orientation]
    write_phantom_series(
        tmp_path / "in", slices=4, size=48, ImageOrientationPatient=vectors, ImagePositionPatient=placed(vectors)
    )
    orient = SlicesLastOrientationd("image")
    expected, found = (
        LoadCompactSeriesd("image", scratch=scratch)({"image": str(tmp_path / "in")})["image"]
        for scratch in (None, Scratch(tmp_path))
    )
    wanted, oriented = (orient({"image": image})["image"] for image in (expected, found))
    assert oriented.data_ptr() == found.data_ptr() and oriented.stride() == found.stride(), "as it was read"
    assert torch.equal(oriented.as_tensor(), wanted.as_tensor()) and oriented.dtype == wanted.dtype
    np.testing.assert_allclose(oriented.affine, wanted.affine, atol=1e-9)
    volume = found.meta["volume"]
    np.testing.assert_array_equal(volume.array, expected.meta["volume"].array)
    back = turned_to(found[0].numpy(), np.asarray(found.affine), volume.affine_ras)
    np.testing.assert_array_equal(back, volume.array)


@pytest.mark.parametrize("seed", range(8))
def test_any_order_of_axes_and_directions_is_turned_back(seed):
    rng = np.random.default_rng(seed)
    array = rng.integers(0, 100, (3, 4, 5))
    affine = np.eye(4)
    affine[:3] = rng.normal(size=(3, 4))
    order = np.stack([rng.permutation(3), rng.choice([-1, 1], 3)], axis=1)
    there = turned(array, order)
    moved = affine @ nibabel.orientations.inv_ornt_aff(order, array.shape)
    np.testing.assert_array_equal(turned_to(there, moved, affine), array)
    with pytest.raises(AssertionError, match="the same grid"):
        turned_to(there, moved @ np.diag([1.3, 1, 1, 1]) + np.eye(4), affine)


AXIAL = np.array([[-0.8, 0, 0, 20], [0, -0.8, 0, 30.5], [0, 0, 2.5, 112], [0, 0, 0, 1.0]])  # reading order
ORDERS = [
    ([0, 1, 2], [1, 1, 1]),  # each axis' place in the file, and its direction
    ([0, 1, 2], [-1, -1, 1]),  # RAS, as most tools write
    ([1, 2, 0], [1, -1, -1]),  # slices first
    ([2, 0, 1], [1, 1, -1]),
]


def save_in_order(path, hu, order, affine=AXIAL):
    """Write HU (H, W, D) in reading order as a file whose voxels come in another."""
    ornt = np.stack(order, axis=1)
    image = nibabel.Nifti1Image(turned(hu, ornt), affine @ nibabel.orientations.inv_ornt_aff(ornt, hu.shape))
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("spacing", [(0.8, 0.8, 2.5), (0.8, 0.8, 0.6), (0.8, 0.8, 0.8)])
def test_nifti_is_read_in_reading_order_and_can_be_put_back(tmp_path, order, spacing):
    hu, affine = phantom_hu(slices=5, size=24), AXIAL.copy()
    affine[:3, :3] = np.diag(spacing) * np.sign(AXIAL[:3, :3])
    path = save_in_order(tmp_path / "ct.nii.gz", hu, order, affine)
    image = LoadCompactSeriesd("image")({"image": str(path)})["image"]
    source = image.meta["volume"]
    np.testing.assert_array_equal(image[0].numpy(), hu)
    np.testing.assert_array_equal(source.slice_hu(3), hu[:, :, 3])
    np.testing.assert_allclose(source.affine_ras, affine, atol=1e-4)
    assert source.spacing_mm == pytest.approx(spacing)
    stored = nibabel.load(path)
    there, of_file = source.as_in_file(hu)
    np.testing.assert_array_equal(there, np.asarray(stored.dataobj))
    np.testing.assert_allclose(of_file, stored.affine, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"slice_spacing_mm": 1.25, "task": "denoise"}])
def test_the_order_of_a_files_voxels_changes_nothing(tmp_path, options):
    weights = write_tiny_weights(tmp_path / "model.pt", part="refiner", scale=0.05)
    results = []
    for number, order in enumerate(ORDERS):
        folder = tmp_path / str(number)
        (folder / "in").mkdir(parents=True)
        path = save_in_order(folder / "in" / "ct.nii.gz", phantom_hu(slices=6, size=32), order)
        named = {"dataset_dir": folder / "in", "output_dir": folder / "out", "weights": weights}
        run_tiny("inference.yaml", "inference", **named, **options)
        (written,) = (folder / "out").glob("*/volume.nii.gz")
        result, source = nibabel.load(written), nibabel.load(path)
        assert nibabel.aff2axcodes(result.affine) == nibabel.aff2axcodes(source.affine)
        results.append(nibabel.as_closest_canonical(result))
        (found,) = load_restorer(preset="tiny", weights_file=str(weights), mixed_precision="off", **options).folder(
            folder / "in"
        )
        np.testing.assert_allclose(found.restored_hu, np.asarray(result.dataobj), atol=0.5)
        np.testing.assert_allclose(found.affine, result.affine, atol=1e-4)
    for result in results[1:]:
        np.testing.assert_array_equal(np.asarray(result.dataobj), np.asarray(results[0].dataobj))
        np.testing.assert_allclose(result.affine, results[0].affine, atol=1e-4)
