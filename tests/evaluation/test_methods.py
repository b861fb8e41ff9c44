import numpy as np
import pytest

from bundle.errors import BundleError
from bundle.evaluation.methods import Method, Problem, missing, restricted


def problem(hu):
    return Problem("key", hu, hu, (0.8, 0.8, 2.5))


def test_a_problem_knows_the_noise_of_its_input():
    hu = np.random.default_rng(0).normal(40, 12, (64, 64, 3)).astype(np.float32)
    assert problem(hu).noise_hu == pytest.approx(12, rel=0.1)


def test_a_missing_method_says_why():
    method = missing("x", "baseline", "something", BundleError("no package x"))
    with pytest.raises(BundleError, match="no package x"):
        method.restore(problem(np.zeros((8, 8, 2), np.float32)))


def test_methods_are_chosen_by_name():
    methods = [Method(name, "baseline", "", lambda p: p.degraded_hu) for name in ("a", "b", "c")]
    assert restricted(methods, None) == methods
    assert [m.name for m in restricted(methods, ["c", "a"])] == ["a", "c"]
    with pytest.raises(BundleError, match="'d' is unknown"):
        restricted(methods, ["d"])
    with pytest.raises(BundleError, match=r"methods '\[a,b\]' is no list \(put its names in quotes"):
        restricted(methods, "[a,b]")


def test_a_method_knows_with_what_it_restores_a_series():
    plain = Method("a", "baseline", "", lambda p: p.degraded_hu)
    assert plain.parameters_of("key") == {}
    by_series = Method("b", "baseline", "", lambda p: p.degraded_hu, parameters=lambda key: {"sigma": float(key)})
    assert by_series.parameters_of("3") == {"sigma": 3.0}
