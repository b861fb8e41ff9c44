import numpy as np
import pytest
from training_fixtures import prepare

from bundle.data.averaging import SlabSampling, average
from bundle.data.patches import PatchDataset
from bundle.data.splits import Part
from bundle.degrade.composition import DegradationSampling


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("cases"), ["a"])[0]


def test_average_conserves_the_mean_and_of_one_is_the_identity():
    volume = np.random.default_rng(0).normal(0, 100, (5, 6, 12)).astype(np.float32)
    assert np.array_equal(average(volume, 1), volume)
    for slices in (2, 3, 4):
        thick = average(volume, slices)
        assert thick.shape == (5, 6, 12 // slices)
        np.testing.assert_allclose(thick.mean(axis=2), volume.mean(axis=2), rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(thick[..., 1], volume[..., slices : 2 * slices].mean(axis=2), rtol=1e-5, atol=1e-3)


def test_draws_stay_within_the_series_and_the_thickest_slab():
    sampling = SlabSampling(probability=1.0, most=5, most_mm=6.0)
    for spacing, slices, largest in ((1.0, 100, 5), (2.0, 100, 3), (1.0, 18, 3), (1.0, 11, 1), (5.0, 100, 1)):
        drawn = {
            sampling.draw(np.random.default_rng(seed), spacing_mm=spacing, slices=slices, wanted=6)
            for seed in range(200)
        }
        assert drawn == (set(range(2, largest + 1)) if largest > 1 else {1})
    never = SlabSampling()
    assert {never.draw(np.random.default_rng(s), spacing_mm=1.0, slices=99, wanted=2) for s in range(50)} == {1}


def test_patches_of_slabs_are_means_of_slices_with_their_noise_and_spacing(case):
    settings = {"patch_size": 16, "num_slices": 2, "length": 30, "seed": 1, "augment": False}
    data = PatchDataset(
        [Part.whole(case)],
        **settings,
        degradation=DegradationSampling(clean_fraction=1.0),
        slabs=SlabSampling(probability=1.0, most=3, most_mm=100.0),
    )
    seen = set()
    for index in range(30):
        item = data[index]
        slices = round(float(item["spacing_mm"][2]) / case.spacing_mm[2])
        seen.add(slices)
        label = item["label"][0].numpy()
        whole = [
            average(case.image_hu[:, :, k : k + slices * 2], slices) for k in range(case.shape[2] - 2 * slices + 1)
        ]
        windows = [np.lib.stride_tricks.sliding_window_view(thick, (16, 16), axis=(0, 1)) for thick in whole]
        assert any((window == label.transpose(2, 0, 1)).all(axis=(2, 3, 4)).any() for window in windows)
        assert (item["noise_level"].numpy() < np.max(case.noise_hu) / np.sqrt(slices) * 1.2).all()
    assert seen == {2, 3}


@pytest.mark.parametrize("wrong", [{"probability": 1.5}, {"most": 0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError):
        SlabSampling(**wrong)
