import multiprocessing

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from bundle.degrade.low_dose import Scanner, apply_dose, unit_noise_volume
from bundle.degrade.transforms import LowDosed, UnitNoised, sample_dose, series_seed

SCANNER = Scanner(views=40, photons_per_ray=1e5)


def series(value: float = 0.0) -> dict:
    volume = torch.full((1, 24, 32, 3), -1000.0)
    volume[:, 6:18, 8:24] = value
    affine = torch.diag(torch.tensor([-2.0, -3.0, 5.0, 1.0], dtype=torch.float64))
    return {"image": MetaTensor(volume, affine=affine, meta={"series": "a"}), "other": 1}


def test_unit_noise_is_that_of_the_array_function():
    data = series()
    result = UnitNoised(seed=7, scanner=SCANNER)(data)
    volume = np.asarray(data["image"])[0]
    expected = unit_noise_volume(volume, spacing_mm=(2, 3), seed=series_seed(volume, seed=7), scanner=SCANNER)
    for key, noise in zip(("quantum", "electronic"), expected, strict=True):
        np.testing.assert_array_equal(result[key].numpy()[0], noise)
        assert isinstance(result[key], MetaTensor)
        torch.testing.assert_close(result[key].affine, data["image"].affine)
    assert result["other"] == 1
    assert set(data) == {"image", "other"}


def test_series_differ_in_noise_and_replay():
    first, again, second = (UnitNoised(scanner=SCANNER)(series(v))["quantum"] for v in (0.0, 0.0, 1.0))
    assert torch.equal(first, again)
    assert not torch.allclose(first.float(), second.float(), rtol=0.2)


def test_low_dose_after_unit_noise():
    data = series()
    noised = UnitNoised(scanner=SCANNER)(data)
    result = Compose([UnitNoised(scanner=SCANNER), LowDosed(dose=0.25)])(data)
    expected = apply_dose(*(np.asarray(noised[key]) for key in ("image", "quantum", "electronic")), dose=0.25)
    np.testing.assert_array_equal(result["image"].numpy(), expected)
    assert torch.equal(result["image"].affine, data["image"].affine)
    assert result["image"].meta["series"] == "a"
    assert set(result) == {"image", "other"}
    assert float(data["image"].max()) == 0.0  # the input is left alone


def test_full_dose_is_the_identity():
    result = LowDosed(dose=1, keep_noise=True)(UnitNoised(scanner=SCANNER)(series()))
    assert torch.equal(result["image"], series()["image"])
    assert "quantum" in result


def test_misuse_is_named():
    with pytest.raises(ValueError, match="put UnitNoised before it"):
        LowDosed(dose=0.5)(series())
    with pytest.raises(ValueError, match="dose must be"):
        LowDosed(dose=0)
    with pytest.raises(ValueError, match="must name one image"):
        UnitNoised(["a", "b"])
    with pytest.raises(ValueError, match="MetaTensor of shape"):
        UnitNoised()({"image": torch.zeros(1, 2, 3, 4)})


def test_doses_are_log_uniform_with_clean_ones():
    rng = np.random.default_rng(0)
    doses = np.array([sample_dose(rng, 0.1, 0.9, 0.2) for _ in range(4000)])
    clean = doses == 1
    assert clean.mean() == pytest.approx(0.2, abs=0.03)
    assert doses[~clean].min() >= 0.1
    assert doses[~clean].max() <= 0.9
    assert np.log(doses[~clean]).mean() == pytest.approx(np.log(0.1 * 0.9) / 2, abs=0.04)
    assert sample_dose(np.random.default_rng(1), 0.1, 0.9, 0.2) == sample_dose(np.random.default_rng(1), 0.1, 0.9, 0.2)


@pytest.mark.parametrize("limits", [(0, 0.5, 0), (0.5, 0.1, 0), (0.5, 1.1, 0), (0.1, 0.5, 2)])
def test_impossible_dose_ranges_are_refused(limits):
    with pytest.raises(ValueError, match=r"dose range|clean_fraction"):
        sample_dose(np.random.default_rng(0), *limits)


def _noise_sum(_: int) -> float:
    return float(UnitNoised(scanner=SCANNER)(series())["quantum"].float().sum())


def test_forked_workers_of_a_data_loader_can_project():
    here = _noise_sum(0)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map_async(_noise_sum, range(2)).get(timeout=60) == [here, here]
