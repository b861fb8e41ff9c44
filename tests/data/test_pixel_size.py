import numpy as np
import pytest
from training_fixtures import prepare

from bundle.data.levels import NoiseLevels
from bundle.data.patches import PatchDataset
from bundle.data.pixel_size import PixelSize, PixelSizeSampling
from bundle.data.reconstruction import Reconstruction, ReconstructionSampling
from bundle.data.splits import Part
from bundle.degrade.composition import LowDose, apply_steps
from bundle.metrics.noise import noise_level

FACTORS = PixelSizeSampling().factors


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cases")
    return [Part.whole(prepare(folder, ["a"], spacing=(0.8, 0.8, 1.0), slices=16, size=128)[0])]


def dataset(parts, **settings):
    return PatchDataset(parts, patch_size=16, num_slices=4, length=40, seed=3, **settings)


@pytest.mark.parametrize("factor", FACTORS)
def test_a_ramp_is_the_ramp_at_the_new_centres(factor):
    rows, columns, slices = np.meshgrid(np.arange(96.0), np.arange(96.0), np.arange(3.0), indexing="ij")
    resampled = PixelSize(factor)(3 * rows - 2 * columns + 50 * slices)
    new = np.arange(resampled.shape[0])
    centres = (new + 0.5) * 96 / len(new) - 0.5
    expected = 3 * centres[:, None, None] - 2 * centres[None, :, None] + 50 * np.arange(3.0)
    inner = slice(16, -16)  # the mirror bends a ramp at its ends
    np.testing.assert_allclose(resampled[inner, inner], expected[inner, inner], atol=2e-3)


def test_the_identity_and_the_mean():
    volume = np.random.default_rng(1).normal(0, 30, (48, 48, 2)).astype(np.float32)
    assert PixelSize()(volume) is volume
    assert PixelSize(0.75)(volume, 64).shape == (64, 64, 2)
    for factor in FACTORS:
        np.testing.assert_allclose(PixelSize(factor)(np.full((48, 48, 2), -73.0)), -73, rtol=1e-5)


@pytest.mark.parametrize("factor", FACTORS)
def test_factors_are_exact_for_patches_of_whole_blocks(factor):
    for size in (64, 96, 128, 256):
        assert PixelSize(factor).source(size) == size * factor


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("steps", [(), (LowDose(dose=0.25),)], ids=["as it is", "a quarter"])
def test_levels_are_those_measured_on_the_resampled_image(parts, steps, factor):
    case = parts[0].case
    pixel_size = PixelSize(factor)
    degraded = apply_steps(case.image_hu, steps, spacing_mm=case.spacing_mm, noise=case.noise)
    levels = NoiseLevels()(case, steps, slice(0, 16), reconstruction=Reconstruction(pixels=pixel_size))
    assert np.median(levels / noise_level(pixel_size(degraded))) == pytest.approx(1, abs=0.12)


def test_image_and_target_stay_together_and_repeat(parts):
    sampling = ReconstructionSampling(pixels=PixelSizeSampling(probability=1.0))
    resampled = dataset(parts, reconstruction=sampling)
    factors = [resampled.metadata(index)["pixel_size"] for index in range(40)]
    assert set(factors) == set(FACTORS)
    for index in range(40):
        item, again = resampled[index], dataset(parts, reconstruction=sampling)[index]
        assert item["image"].shape == item["label"].shape == (1, 16, 16, 4)
        assert (item["image"] == again["image"]).all()
        assert item["spacing_mm"][0] == pytest.approx(0.8 * factors[index])
        region = resampled.metadata(index)
        assert region["stop"][0] - region["start"][0] == 16 * factors[index]
        # What the dose added is small beside the body's edge: the two sides show the same place.
        if item["label"].std() > 200:
            both = np.stack([item["image"].numpy().ravel(), item["label"].numpy().ravel()])
            assert np.corrcoef(both)[0, 1] > 0.9


def test_a_patch_that_the_series_has_no_room_for_keeps_its_pixels(parts):
    sampling = ReconstructionSampling(pixels=PixelSizeSampling(probability=1.0))
    large = PatchDataset(parts, patch_size=128, num_slices=4, length=20, seed=3, reconstruction=sampling)
    assert {large.metadata(index)["pixel_size"] for index in range(20)} == {0.75, 0.875, 1.0}
    assert large[0]["image"].shape == (1, 128, 128, 4)


@pytest.mark.parametrize("wrong", [{"probability": 1.5}, {"factors": ()}, {"factors": (0.0,)}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError):
        PixelSizeSampling(**wrong)
