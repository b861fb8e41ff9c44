"""In or out of domain: what is measured, and how it is held against ranges."""

import numpy as np
import pytest
from phantom_series import phantom_hu, write_phantom_series
from pydicom.dataset import Dataset
from scipy import ndimage
from tiny_workflows import ROOT

from bundle.dicom.index import read_volume
from bundle.errors import BundleError
from bundle.restoration.domain import PROPERTIES, domain_of, judge, measure
from bundle.restoration.nifti import NiftiSource
from bundle.restoration.registry import read_card

CT = ROOT.parent / "shared" / "data" / "ct"

INSIDE = {"noise_hu": 20.0, "pixel_mm": 0.8, "contrast": "yes"}
RANGES = {"noise_hu": [5, 40], "pixel_mm": [0.5, 1.0], "contrast": ["yes", "no or not said"]}


def nifti(hu):
    return NiftiSource(hu.astype(np.float32), np.diag([0.8, 0.8, 2.5, 1.0]))


def test_within_all_ranges_is_inside():
    domain = judge(INSIDE, RANGES)
    assert domain.inside and domain.word == "yes" and domain.reasons == ()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("noise_hu", 41.0, "noise 41 HU is above 40"), ("pixel_mm", 0.4, "below 0.5"), ("contrast", "maybe", "maybe")],
)
def test_each_property_out_of_range_is_a_reason_in_words(name, value, said):
    domain = judge({**INSIDE, name: value}, RANGES)
    assert not domain.inside and domain.word == "no"
    assert len(domain.reasons) == 1 and said in domain.reasons[0]
    assert said in domain.said


def test_an_objection_is_a_reason_whatever_is_measured():
    for ranges in (RANGES, {}):
        domain = judge(INSIDE, ranges, objections=["made for something else"])
        assert domain.word == "no" and domain.reasons == ("made for something else",)


def test_of_a_series_outside_the_weights_that_it_fits_are_named(tmp_path):
    write_phantom_series(tmp_path, slices=6, size=128)
    noisy = read_volume(str(tmp_path))  # 15 HU
    others = {"denoise": {"noise_hu": [5, 190], "slice_mm": [8, 9]}, "thin": {"noise_hu": [200, 300]}}
    domain = domain_of(noisy, {"noise_hu": [6, 10]}, others=others)
    assert domain.fits == ("denoise",) and domain.described()["fits_tasks"] == ["denoise"]
    assert domain.warning.endswith(
        "is above 10; within that of the weights for task 'denoise' (without --slice_spacing_mm)"
    )
    with pytest.raises(BundleError, match="without --slice_spacing_mm"):
        domain_of(noisy, {"noise_hu": [6, 10]}, others=others, strict=True)
    assert domain_of(noisy, {"noise_hu": [6, 190]}, others=others).fits == ()
    without_thickness = nifti(phantom_hu(slices=6, size=128))
    assert domain_of(without_thickness, {"noise_hu": [6, 10]}, others=others).fits == ()


def test_strict_takes_nothing_that_it_knows_nothing_of():
    source = nifti(phantom_hu(slices=4, size=64))
    assert domain_of(source, {}).word == "unknown"
    with pytest.raises(BundleError, match="domain is unknown"):
        domain_of(source, {}, strict=True)


def test_what_is_unknown_on_either_side_says_nothing():
    assert judge({**INSIDE, "noise_hu": None, "bone_fraction": 0.9}, RANGES).inside
    assert judge(INSIDE, {}).word == "unknown"


def test_a_phantoms_properties(tmp_path):
    write_phantom_series(tmp_path, slices=6, size=128, ContrastBolusAgent="Ultravist")
    volume = read_volume(str(tmp_path))
    found = measure(volume, volume.headers[0])
    assert set(found) == set(PROPERTIES)
    assert found["noise_hu"] == pytest.approx(15, rel=0.15), "the phantom's white noise"
    assert (found["pixel_mm"], found["slice_mm"], found["thickness_mm"]) == (0.8, 2.5, 2.5)
    assert 0.05 < found["lung_fraction"] < 0.5 and 0 < found["bone_fraction"] < 0.2
    assert (found["metal_fraction"], found["contrast"]) == (0.0, "yes")


def test_a_smoother_kernel_has_a_lower_noise_frequency():
    rng = np.random.default_rng(0)
    i, j = np.mgrid[-1:1:192j, -1:1:192j]
    clean = np.where(i**2 + j**2 < 0.8, 50.0, -1000.0)[:, :, None].repeat(4, axis=2)
    frequencies = []
    for sigma in (0.0, 0.7, 1.5):
        noise = ndimage.gaussian_filter(rng.normal(0, 1, clean.shape), (sigma, sigma, 0))
        frequencies.append(measure(nifti(clean + 10 * noise / noise.std()))["noise_frequency_per_mm"])
    assert frequencies == sorted(frequencies, reverse=True)
    assert frequencies[0] > 1.5 * frequencies[2]


def test_metal_is_counted_and_a_volume_without_headers_has_none():
    hu = phantom_hu(slices=4)
    hu[30:34, 30:34, 1] = 3500
    found = measure(nifti(hu))
    assert found["metal_fraction"] == pytest.approx(16 / hu.size, abs=1e-6)
    assert found["thickness_mm"] is None and found["contrast"] is None


def test_a_header_without_a_thickness_and_a_volume_of_air_are_no_error():
    air = np.full((64, 64, 1), -1000.0)
    found = measure(nifti(air), Dataset())
    assert found["lung_fraction"] is found["slice_mm"] is found["thickness_mm"] is None


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("rider_pilot_0117", None),
        ("crlm_1004", None),
        ("lungdx_a0002_b70f", None),  # a sharp kernel is one of those trained on
        ("ge_head_tilt", "bone"),
    ],
)
def test_the_shipped_card_knows_a_real_series_from_a_head(folder, reason):
    if not (CT / folder).is_dir():
        pytest.skip("no real series here")
    domain = domain_of(read_volume(str(CT / folder), gaps="resample"), read_card(ROOT / "models" / "model.pt").domain)
    assert domain.inside == (reason is None), domain.reasons
    assert reason is None or any(reason in said for said in domain.reasons)
