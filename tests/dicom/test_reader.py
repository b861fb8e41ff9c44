import nibabel
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, decollate_batch
from monai.data.utils import list_data_collate
from monai.transforms import Compose, Orientationd
from phantom_series import phantom_hu, write_phantom_series

from bundle.dicom.index import find_series
from bundle.dicom.reader import LoadSeriesd, SeriesReader
from bundle.errors import BundleError, find_bundle_error


def save_nifti(path, values, affine=None):
    image = nibabel.Nifti1Image(values, np.diag([-0.8, -0.8, 2.5, 1]) if affine is None else affine)
    nibabel.save(image, path)
    return str(path)


def test_loads_a_series_as_a_tensor_of_hu(tmp_path):
    hu = write_phantom_series(tmp_path)
    series = find_series(tmp_path).series[0]
    for given in (str(tmp_path), [str(path) for path in tmp_path.iterdir()], list(series.paths), series):
        image = LoadSeriesd(keys="image")({"image": given})["image"]
        assert image.shape == (1, *hu.shape) and image.dtype == torch.float32
        np.testing.assert_array_equal(image[0].numpy(), hu)
        np.testing.assert_allclose(image.affine.numpy(), image.meta["volume"].affine_ras)
        assert image.meta["series_key"] == series.key == image.meta["filename_or_obj"]


def test_meta_data_survive_monai_and_workers(tmp_path):
    write_phantom_series(tmp_path)
    chain = Compose([LoadSeriesd(keys="image"), Orientationd(keys="image", axcodes="RAS", labels=None)])
    loader = DataLoader(Dataset([{"image": str(tmp_path)}] * 2, chain), num_workers=1, collate_fn=lambda batch: batch)
    for batch in loader:
        volume = batch[0]["image"].meta["volume"]
        flipped = batch[0]["image"][0].numpy()[::-1, ::-1]
        np.testing.assert_array_equal(flipped, volume.array)
    pair = list_data_collate([chain({"image": str(tmp_path)})] * 2)["image"]
    assert pair.shape == (2, 1, 64, 64, 12)
    assert all(image.meta["volume"] == image.meta["series_key"] for image in decollate_batch(pair))


def test_a_refusal_is_final(tmp_path):
    write_phantom_series(tmp_path, drop=(5,))
    with pytest.raises(BundleError, match="missing"):
        LoadSeriesd(keys="image")({"image": str(tmp_path)})
    with pytest.raises(RuntimeError) as caught:
        Compose([LoadSeriesd(keys="image")])({"image": str(tmp_path)})
    assert "missing" in str(find_bundle_error(caught.value))
    with pytest.raises(BundleError, match="no further reader"):
        LoadSeriesd(keys="image").register(SeriesReader())


def test_loads_nifti_in_hu(tmp_path):
    hu = phantom_hu()
    image = LoadSeriesd(keys="image")({"image": save_nifti(tmp_path / "ct.nii.gz", hu.astype(np.int16))})["image"]
    np.testing.assert_array_equal(image[0].numpy(), hu)
    np.testing.assert_allclose(image.affine.numpy(), np.diag([-0.8, -0.8, 2.5, 1]))
    assert "volume" not in image.meta and len(image.meta["series_key"]) == 16


@pytest.mark.parametrize(
    "change",
    [
        lambda hu: ((hu + 1024) / 4096 * 255).astype(np.uint8),
        lambda hu: (hu + 1024) / 4096,
        lambda hu: hu / 1000,
        lambda hu: hu + 1024,
        lambda hu: np.where(hu == 0, np.nan, hu),
        lambda hu: hu * 1000,
    ],
    ids=["bytes", "unit", "thousands", "stored", "nan", "scaled"],
)
def test_refuses_nifti_that_is_not_hu(tmp_path, change):
    path = save_nifti(tmp_path / "ct.nii.gz", change(phantom_hu()))
    with pytest.raises(BundleError, match=r"ct\.nii\.gz") as caught:
        LoadSeriesd(keys="image")({"image": path})
    assert "\n" not in str(caught.value)


def test_refuses_nifti_without_orientation_or_depth(tmp_path):
    nibabel.save(nibabel.Nifti1Image(phantom_hu(), None), tmp_path / "a.nii")
    save_nifti(tmp_path / "b.nii", phantom_hu()[:, :, 0])
    (tmp_path / "c.nii.gz").write_bytes(b"no NIfTI")
    for name, words in [("a.nii", "orientation"), ("b.nii", "3D"), ("c.nii.gz", "cannot be read")]:
        with pytest.raises(BundleError, match=words):
            LoadSeriesd(keys="image")({"image": str(tmp_path / name)})


def test_reads_uneven_series_when_asked(tmp_path):
    hu = write_phantom_series(tmp_path, drop=(5,))
    image = LoadSeriesd(keys="image", gaps="resample")({"image": [str(path) for path in tmp_path.iterdir()]})["image"]
    assert image.shape == (1, *hu.shape) and image.meta["volume"].resampled
    np.testing.assert_allclose(np.linalg.norm(np.asarray(image.affine)[:3, 2]), 2.5)
    with pytest.raises(BundleError, match="gaps must be"):
        LoadSeriesd(keys="image", gaps="yes")
