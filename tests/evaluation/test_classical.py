"""Classical filters: they denoise, in HU, and their strength is in units of the noise."""

import sys

import numpy as np
import pytest
from phantom_series import phantom_hu

from bundle.errors import BundleError
from bundle.evaluation.classical import FILTERS, classical_method, expand
from bundle.evaluation.methods import Problem

PARAMETERS = {
    "gaussian": {"sigma": 0.4},
    "bilateral": {"strength": 4.0, "sigma": 1.0},
    "nlm3d": {"strength": 0.8},
    "tv3d": {"strength": 0.5},
    "bm3d": {"strength": 1.3},
}
CLEAN = phantom_hu(slices=4, size=64)
POOR = (CLEAN + np.random.default_rng(1).normal(0, 60, CLEAN.shape)).astype(np.float32)


def error(name: str, degraded=POOR, clean=CLEAN, **parameters) -> float:
    method = classical_method(name, {**PARAMETERS[name], **parameters})
    restored = method.restore(Problem("key", degraded, clean, (0.8, 0.8, 2.5)))
    assert restored.shape == clean.shape and restored.dtype == np.float32
    return float(np.sqrt(np.mean((restored - clean) ** 2)))


@pytest.mark.parametrize("name", FILTERS)
def test_every_filter_denoises(name):
    if name == "bm3d":
        pytest.importorskip("bm3d")
    few = slice(0, 1) if name == "bm3d" else slice(None)  # it takes its time
    assert error(name, POOR[..., few], CLEAN[..., few]) < 0.95 * 60


@pytest.mark.parametrize("name", ["nlm3d", "tv3d", "bilateral"])
def test_strength_is_in_units_of_the_noise(name):
    """A scene twice as strong in everything is restored to twice the same."""
    method = classical_method(name, PARAMETERS[name])
    once, twice = (method.restore(Problem("k", f * POOR, f * CLEAN, (0.8, 0.8, 2.5))) for f in (1, 2))
    assert np.sqrt(np.mean((twice - 2 * once) ** 2)) < 0.1 * np.sqrt(np.mean((once - POOR) ** 2))


@pytest.mark.parametrize("name", ["tv3d", "bilateral"])  # non-local means always join what differs by noise alone
def test_hardly_any_strength_changes_hardly_anything(name):
    assert error(name, strength=1e-3) == pytest.approx(60, rel=0.05)


def test_a_package_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bm3d", None)
    with pytest.raises(BundleError, match="bm3d is not installed"):
        error("bm3d")


def test_misuse_is_named():
    with pytest.raises(BundleError, match="'median' is unknown"):
        classical_method("median", {})
    with pytest.raises(BundleError, match="parameters strength, sigma"):
        classical_method("bilateral", {"strength": 1})


def test_grids_have_all_combinations():
    assert expand({"a": [1, 2], "b": [3]}) == [{"a": 1, "b": 3}, {"a": 2, "b": 3}]
