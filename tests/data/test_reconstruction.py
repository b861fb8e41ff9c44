import numpy as np
import pytest
from training_fixtures import prepare

from bundle.data.levels import NoiseLevels
from bundle.data.patches import PatchDataset
from bundle.data.pixel_size import PixelSize, PixelSizeSampling
from bundle.data.reconstruction import Reconstruction, ReconstructionSampling
from bundle.data.splits import Part
from bundle.degrade.blur import InPlaneBlur
from bundle.degrade.composition import LowDose, apply_steps
from bundle.metrics.noise import noise_level

BLURS = ReconstructionSampling().mtf50_per_mm
SPACING = (0.8, 0.8, 1.0)
BOTH = ReconstructionSampling(smooth_probability=1.0, pixels=PixelSizeSampling(probability=1.0))


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cases")
    return [Part.whole(prepare(folder, ["a"], spacing=SPACING, slices=16, size=128)[0])]


def dataset(parts, sampling):
    return PatchDataset(parts, patch_size=32, num_slices=4, length=40, seed=3, reconstruction=sampling)


def test_nothing_drawn_is_nothing_changed():
    volume = np.random.default_rng(1).normal(0, 30, (48, 48, 2)).astype(np.float32)
    assert Reconstruction()(volume, spacing_mm=SPACING) is volume


def test_a_wave_loses_what_the_transfer_function_says():
    rows = np.arange(64)
    for mtf50 in BLURS:
        for period in (8, 16):
            wave = np.cos(2 * np.pi * (rows + 0.5) / period)[:, None, None] * np.ones((64, 64, 1))
            smooth = Reconstruction(InPlaneBlur(mtf50_per_mm=mtf50))(wave, spacing_mm=SPACING)
            expected = np.exp(-np.log(2) * (1 / (0.8 * period) / mtf50) ** 2)
            # Mirrored at its ends this wave goes on as it is. Sampled, a Gaussian of half a pixel blurs a little less.
            np.testing.assert_allclose(smooth, expected * wave, atol=0.02)


@pytest.mark.parametrize("factor", [0.75, 1.0, 1.5])
@pytest.mark.parametrize("mtf50", BLURS)
@pytest.mark.parametrize("steps", [(), (LowDose(dose=0.25),)], ids=["as it is", "a quarter"])
def test_levels_are_those_measured_on_the_image(parts, steps, mtf50, factor):
    case = parts[0].case
    other = Reconstruction(InPlaneBlur(mtf50_per_mm=mtf50), PixelSize(factor))
    degraded = apply_steps(case.image_hu, steps, spacing_mm=case.spacing_mm, noise=case.noise)
    levels = NoiseLevels()(case, steps, slice(0, 16), reconstruction=other)
    assert np.median(levels / noise_level(other(degraded, spacing_mm=case.spacing_mm))) == pytest.approx(1, abs=0.12)


def test_target_and_image_are_smoothed_alike_and_repeat(parts):
    smooth, plain = dataset(parts, BOTH), dataset(parts, ReconstructionSampling(pixels=BOTH.pixels))
    assert {smooth.metadata(index)["kernel_mtf50_per_mm"] for index in range(40)} == set(BLURS)
    assert {plain.metadata(index)["kernel_mtf50_per_mm"] for index in range(40)} == {np.inf}
    for index in range(40):
        item, again = smooth[index], dataset(parts, BOTH)[index]
        assert item["image"].shape == item["label"].shape == (1, 32, 32, 4)
        assert (item["image"] == again["image"]).all()
        assert (item["noise_level"] < plain[index]["noise_level"]).all()
        assert (item["image"] - plain[index]["image"]).abs().max() > 1
        assert (item["label"] - plain[index]["label"]).abs().max() > 1


def test_draws_keep_their_place(parts):
    """What is not asked for changes nothing about what else is drawn."""
    other = dataset(parts, ReconstructionSampling(smooth_probability=1.0))
    plain = dataset(parts, ReconstructionSampling())
    for index in range(10):
        one, two = other.metadata(index), plain.metadata(index)
        assert one.pop("kernel_mtf50_per_mm") != two.pop("kernel_mtf50_per_mm")
        assert one == two


@pytest.mark.parametrize("wrong", [{"smooth_probability": 1.5}, {"mtf50_per_mm": ()}, {"mtf50_per_mm": (0.0,)}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError):
        ReconstructionSampling(**wrong)
