import numpy as np
import pytest
from training_fixtures import prepare

from bundle.data.contrast import PIVOT_HU, Contrast, ContrastSampling
from bundle.data.patches import PatchDataset
from bundle.data.splits import Part


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return [Part.whole(prepare(tmp_path_factory.mktemp("cases"), ["a"])[0])]


def dataset(parts, **settings):
    return PatchDataset(parts, patch_size=16, num_slices=4, length=40, seed=3, **settings)


def test_identity_pivot_and_inverse():
    volume = np.linspace(-1000, 2000, 60, dtype=np.float32).reshape(3, 4, 5)
    assert Contrast()(volume) is volume
    scaled = Contrast(0.2, 30.0)(volume)
    assert Contrast(0.2)(np.float32([PIVOT_HU])) == PIVOT_HU
    np.testing.assert_allclose(Contrast(5.0)(scaled - 30.0), volume, atol=1e-2)


def test_noise_and_its_level_scale_with_the_tissue(parts):
    plain, weak = dataset(parts), dataset(parts, contrast=ContrastSampling(probability=1.0, lowest=0.1))
    scales = []
    for index in range(40):
        before, after = plain[index], weak[index]
        scale = float(after["noise_level"][0] / before["noise_level"][0])
        scales.append(scale)
        np.testing.assert_allclose(
            after["image"] - after["label"], scale * (before["image"] - before["label"]), atol=0.02
        )
        np.testing.assert_allclose(after["noise_level"], scale * before["noise_level"], rtol=1e-5)
        assert weak.metadata(index)["contrast"] == pytest.approx(scale, rel=1e-4)
    assert 0.1 <= min(scales) < 0.2 and 0.8 < max(scales) <= 1.0


def test_without_it_patches_are_as_before(parts):
    plain, never = dataset(parts), dataset(parts, contrast=ContrastSampling())
    assert all((plain[i]["image"] == never[i]["image"]).all() for i in range(5))


@pytest.mark.parametrize("wrong", [{"probability": -0.1}, {"lowest": 0.0}, {"lowest": 1.5}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError):
        ContrastSampling(**wrong)
