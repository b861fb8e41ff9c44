"""The classical baselines with parameters that run tuning chose, held against what they were chosen on."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bundle.degrade.composition import KERNEL, LOW_DOSE, THICK_SLICES
from bundle.errors import BundleError
from bundle.evaluation.classical import FILTERS, classical_method
from bundle.evaluation.methods import Method, Problem

logger = logging.getLogger(__name__)

SCHEMA = 1
# By kind of degradation, what else has to be the same for parameters to be the best ones. Seeds and slices may differ.
_DECIDES = {LOW_DOSE: ("dose", "calibrate_noise"), THICK_SLICES: ("slice_thickness_mm",), KERNEL: ("mtf50_per_mm",)}


def read_parameters(path: str | Path | None) -> dict[str, Any]:
    """Return the content of a parameters.json; {} when none is named.

    Raises:
        BundleError: when it cannot be read.
    """
    if path is None:
        return {}
    try:
        content = json.loads(Path(path).read_text())
        assert content["schema"] == SCHEMA
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise BundleError(
            f"parameters_file '{Path(path).name}' cannot be read", hint="make one with: run tuning"
        ) from error
    return content


def chosen_methods(
    names: Sequence[str],
    defaults: Mapping[str, Mapping[str, float]],
    content: Mapping[str, Any],
    *,
    best_of_series: bool,
    degradation: Mapping[str, Any] | None = None,
) -> list[Method]:
    """Return the named filters with the parameters of parameters.json, or the configured ones.

    Parameters that were tuned on another degradation than the one evaluated are used with a warning, and the filters'
    definitions say so.

    Args:
        names: of `classical.FILTERS`.
        defaults: parameters by name, for filters that `content` has no choice for.
        content: of parameters.json.
        best_of_series: give a filter what was best on the very series it is judged on, where that was tried.
        degradation: what is evaluated, as in metrics.json; None when it is not known.

    Raises:
        BundleError: for an unknown filter, or one without parameters.
    """
    elsewhere = tuned_elsewhere(content.get("tuned_on") or {}, degradation or {})
    if elsewhere and any(name in content.get("chosen", {}) for name in names):
        logger.warning("the baselines' parameters were tuned on another degradation: %s", elsewhere)
    return [_chosen(name, defaults, content, best_of_series, elsewhere) for name in names]


def tuned_elsewhere(tuned_on: Mapping[str, Any], degradation: Mapping[str, Any]) -> str:
    """Return in words how what was tuned on differs from what is evaluated; '' where it does not, or is not known.

    Args:
        tuned_on: 'kind', and the values of the degradation; as parameters.json has it.
        degradation: the same of the evaluation.
    """
    kinds = [_kinds(one) for one in (tuned_on, degradation)]
    if not all(kinds):
        return ""
    if kinds[0] != kinds[1]:
        return "{}, not {}".format(*(" and ".join(kind) for kind in kinds))
    names = [name for kind in kinds[0] for name in _DECIDES.get(kind, ()) if name in tuned_on and name in degradation]
    differing = [name for name in names if tuned_on[name] != degradation[name]]
    return ", ".join(f"{name} {tuned_on[name]}, not {degradation[name]}" for name in differing)


def _kinds(degradation: Mapping[str, Any]) -> list[str]:
    """Kinds in order, ['none'] without any, [] where nothing is said of them."""
    if "kind" not in degradation:
        return []
    kind = degradation["kind"]
    return [str(one) for one in kind] if isinstance(kind, list | tuple) else [str(kind or "none")]


def _chosen(
    name: str, defaults: Mapping[str, Any], content: Mapping[str, Any], best_of_series: bool, elsewhere: str
) -> Method:
    overall = content.get("chosen", {}).get(name)
    if name in FILTERS and overall is None and name not in defaults:
        raise BundleError(f"baseline '{name}' has no parameters", hint="name them under parameters, or run tuning")
    said = "chosen on validation series" + (f": {elsewhere}" if elsewhere else "") if overall else "as configured"
    general = classical_method(name, overall or defaults.get(name, {}), chosen=said)
    own = {
        key: classical_method(name, choices[name])
        for key, choices in content.get("chosen_by_series", {}).items()
        if name in choices
    }
    if not best_of_series or not own:
        return general

    def of_series(key: str) -> Method:
        return own.get(key, general)

    def restore(problem: Problem) -> np.ndarray:
        return of_series(problem.key).estimate(problem).volume_hu

    # Which series will be judged is not known here, and the phantom is never among those that were tried.
    what = FILTERS[name].definition
    otherwise = general.definition.removeprefix(f"{what}; ")
    at = f" ({elsewhere})" if elsewhere else ""
    definition = f"{what}; its best parameters on each series itself{at} where tried, otherwise {otherwise}"
    return replace(
        general, definition=definition, restore=restore, parameters=lambda key: of_series(key).parameters_of(key)
    )
