import numpy as np
import pytest
from training_fixtures import prepare

from bundle.data.conditions import Told, ToldSampling
from bundle.data.patches import PatchDataset
from bundle.data.splits import Part


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return [Part.whole(prepare(tmp_path_factory.mktemp("cases"), ["a"])[0])]


def dataset(parts, **settings):
    return PatchDataset(parts, patch_size=16, num_slices=4, length=60, seed=3, **settings)


def test_without_it_what_is_so_is_told(parts):
    assert ToldSampling().draw(np.random.default_rng(0)) == Told()
    assert dataset(parts).metadata(5)["told_of_true"] == [1.0, 1.0, 1.0]


def test_the_image_stays_and_what_is_told_of_it_differs_by_the_factors_named(parts):
    plain, off = dataset(parts), dataset(parts, told=ToldSampling(spacing=2.0, noise=1.5))
    factors = []
    for index in range(60):
        before, after = plain[index], off[index]
        np.testing.assert_array_equal(after["image"], before["image"])
        np.testing.assert_array_equal(after["label"], before["label"])
        in_plane, between, noise = off.metadata(index)["told_of_true"]
        np.testing.assert_allclose(after["spacing_mm"] / before["spacing_mm"], [in_plane, in_plane, between], rtol=1e-5)
        np.testing.assert_allclose(after["noise_level"] / before["noise_level"], noise, rtol=1e-5)
        factors.append([in_plane, between, noise])
    logs = np.log(factors) / np.log([2.0, 2.0, 1.5])
    assert np.abs(logs).max() <= 1
    # Uniform between -1 and 1: mean 0 within four standard errors, and both ends are reached.
    assert np.abs(logs.mean(axis=0)).max() < 4 / np.sqrt(3 * 60)
    assert logs.min(axis=0).max() < -0.8 and logs.max(axis=0).min() > 0.8
    assert np.abs(np.corrcoef(logs.T)[np.triu_indices(3, 1)]).max() < 0.5


@pytest.mark.parametrize("settings", [{"spacing": 0.9}, {"noise": 0.0}, {"noise": 11.0}, {"spacing": float("nan")}])
def test_what_is_no_factor_is_refused(settings):
    with pytest.raises(ValueError, match="must be a factor between 1 and 10"):
        ToldSampling(**settings)
