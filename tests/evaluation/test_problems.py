"""Targets meet their partners, and what does not match is named."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from bundle.data.sources import Case, Source
from bundle.errors import BundleError
from bundle.evaluation.problems import PairedSeriesDataset, find_partners, make_problem

AFFINE = np.diag([0.8, 0.8, 2.5, 1.0])


def case(key, label, patient=None):
    return Case(key=key, patient_key=patient or f"patient-{key}", files=(f"{key}.dcm",), label=label)


def item(image_shape=(8, 8, 4), shift=0.0, *, affine=AFFINE, shape=(8, 8, 4)):
    moved = affine.copy()
    moved[2, 3] += shift
    image = MetaTensor(torch.ones(1, *image_shape), affine=torch.from_numpy(moved))
    label = MetaTensor(torch.zeros(1, *shape), affine=torch.from_numpy(AFFINE))
    return {"case": case("a", "x"), "data": {"image": image, "label": label}}


def test_a_problem_has_what_methods_need():
    problem = make_problem(item())
    assert problem.key == "a" and problem.spacing_mm == pytest.approx((0.8, 0.8, 2.5))
    assert (problem.degraded_hu == 1).all() and (problem.target_hu == 0).all()
    make_problem(item(shift=0.01))


def test_what_does_not_match_is_named():
    with pytest.raises(BundleError, match=r"8 x 8 x 3.* and target .8 x 8 x 4.* different sizes"):
        make_problem(item(image_shape=(8, 8, 3)))
    with pytest.raises(BundleError, match=r"differ by 2.5 mm"):
        make_problem(item(shift=2.5))
    with pytest.raises(BundleError, match=r"differ by 0.1 mm"):
        make_problem(item(shift=0.06))
    with pytest.raises(BundleError, match="broken"):
        make_problem({"case": case("a", "x"), "failure": BundleError("broken")})


def turned(degrees):
    """The grid turned about its first voxel."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[cos, -sin, 0, 0], [sin, cos, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ AFFINE


def test_the_far_corners_have_to_lie_together_too():
    wide = (512, 512, 2)
    for affine in (np.diag([0.8009, 0.8, 2.5, 1]), np.diag([0.8, 0.8, 2.501, 1]), turned(0.03)):
        make_problem(item(wide, affine=affine, shape=wide))  # rounding
    with pytest.raises(BundleError, match=r"differ by 28.9 mm"):  # 0.04 mm of a pixel, over 511 of them, both ways
        make_problem(item(wide, affine=np.diag([0.84, 0.84, 2.5, 1]), shape=wide))
    for affine in (np.diag([0.8, 0.802, 2.5, 1]), turned(0.1)):
        with pytest.raises(BundleError, match="same place"):
            make_problem(item(wide, affine=affine, shape=wide))
    long = (8, 8, 400)
    with pytest.raises(BundleError, match=r"differ by 4.0 mm"):
        make_problem(item(long, affine=np.diag([0.8, 0.8, 2.51, 1]), shape=long))


def test_partners_by_folder_then_by_patient():
    targets = Source((case("t1", "one"), case("t2", "two", "p"), case("t3", "three", "q"), case("t4", "four")))
    degraded = Source((case("d1", "one"), case("d2", "other", "p"), case("d3", "b", "q"), case("d4", "c", "q")))
    partners = find_partners(targets, degraded)
    assert {key: partner.key for key, partner in partners.items()} == {"t1": "d1", "t2": "d2"}, "t3 has two"


def test_a_target_without_partner_is_a_failure_of_its_own():
    targets = Source((case("t1", "one"), case("t2", "two")))
    seen = []
    dataset = PairedSeriesDataset(targets, lambda d: seen.append(d) or d, partners={"t1": case("d1", "one")})
    assert dataset[0]["data"] == {"image": ["d1.dcm"], "label": ["t1.dcm"]} == seen[0]
    assert "no degraded partner" in str(dataset[1]["failure"])
