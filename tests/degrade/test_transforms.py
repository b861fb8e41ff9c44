import multiprocessing

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from bundle.degrade.composition import DegradationSampling, apply_steps
from bundle.degrade.low_dose import Scanner, apply_dose, unit_noise_volume
from bundle.degrade.transforms import Degraded, LowDosed, UnitNoised, series_seed

SCANNER = Scanner(views=40, photons_per_ray=1e5)


def series(value: float = 0.0) -> dict:
    volume = torch.full((1, 24, 32, 3), -1000.0)
    volume[:, 6:18, 8:24] = value
    volume[:, 8:10, 10:12] += torch.tensor([0.0, -30.0, -90.0])
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


def test_what_was_done_is_recorded():
    data = Compose([UnitNoised(scanner=SCANNER), LowDosed(dose=0.25)])(series())
    assert data["image"].meta["degradation"][0]["dose"] == 0.25
    thicker = Degraded(sampling=DegradationSampling(degradation="thick_slices", clean_fraction=0.0))(data)
    assert [step["kind"] for step in thicker["image"].meta["degradation"]] == ["low_dose", "thick_slices"]


@pytest.mark.parametrize("kinds", [["low_dose"], ["thick_slices"], ["kernel", "thick_slices", "low_dose"]])
def test_degraded_is_its_recorded_steps_and_replays(kinds):
    sampling = DegradationSampling(
        degradation=kinds, dose_range=(0.2, 0.2), clean_fraction=0.0, slice_thickness_mm=[12.0]
    )
    transform = Degraded(sampling=sampling, seed=3, scanner=SCANNER)
    first, again = transform(series()), transform(series())
    assert torch.equal(first["image"], again["image"]) and not torch.equal(first["image"], series()["image"])
    assert set(first) == {"image", "other"} and torch.equal(first["image"].affine, series()["image"].affine)
    noised = UnitNoised(seed=3, scanner=SCANNER)(series())
    noises = tuple(np.asarray(noised[key])[0] for key in ("quantum", "electronic"))
    expected = apply_steps(
        np.asarray(series()["image"])[0],
        transform.draw(series()["image"]),
        spacing_mm=(2, 3, 5),
        noise=lambda _: noises,
    )
    assert np.array_equal(first["image"][0].numpy(), expected)


def test_slices_of_a_tilted_gantry_are_measured_along_their_normal():
    image = series()["image"]
    image.affine[1, 2] = 4.0  # slices step aside
    sampling = DegradationSampling(degradation="thick_slices", clean_fraction=0.0, slice_thickness_mm=[5.0])
    assert torch.equal(Degraded(sampling=sampling)({"image": image})["image"], image)


def _noise_sum(_: int) -> float:
    return float(UnitNoised(scanner=SCANNER)(series())["quantum"].float().sum())


def test_forked_workers_of_a_data_loader_can_project():
    here = _noise_sum(0)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map_async(_noise_sum, range(2)).get(timeout=60) == [here, here]
