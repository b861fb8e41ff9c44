"""What is compared: a method takes a problem (a poor series) and gives HU back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bundle.degrade.composition import THICK_SLICES
from bundle.degrade.slabs import ThickSlices
from bundle.errors import BundleError
from bundle.metrics.noise import noise_level

Kind = Literal["reference", "ours", "baseline"]


@dataclass(frozen=True)
class Problem:
    """A poor series and its target, HU (H, W, D).

    Attributes:
        key: series key.
        degraded_hu: what methods are given.
        target_hu: what they are measured against; only references (the ceiling) may look at it.
        spacing_mm: along H, W and D.
        degradation: what was done to it, one step after the other, where it was simulated.
    """

    key: str
    degraded_hu: np.ndarray
    target_hu: np.ndarray
    spacing_mm: tuple[float, float, float]
    degradation: Sequence[dict[str, Any]] = ()

    @property
    def noise_hu(self) -> float:
        """Noise level of the poor series, measured on itself, the mean over slices."""
        return float(np.mean(noise_level(self.degraded_hu)))

    @property
    def slabs(self) -> ThickSlices | None:
        """The thick slices that were made of its thin ones; None where none were."""
        for step in self.degradation:
            if step["kind"] == THICK_SLICES:
                return ThickSlices(**{key: value for key, value in step.items() if key != "kind"})
        return None


@dataclass(frozen=True)
class Estimate:
    """What a method gives back.

    Attributes:
        volume_hu: the restoration, HU (H, W, D).
        deviation_hu: how sure it is: standard deviation of the target about it, same shape; None when it does not say.
    """

    volume_hu: np.ndarray
    deviation_hu: np.ndarray | None = None


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        name: of the row.
        kind: 'reference' (input, floor, ceiling), 'ours' or 'baseline'; only baselines can be the best to beat.
        definition: what it is and with which parameters, for the table's readers.
        restore: from a problem to HU (H, W, D) or an Estimate; raises a BundleError when it cannot.
        parameters: from a series' key to the parameters that it is restored with; None for a method without any.
    """

    name: str
    kind: Kind
    definition: str
    restore: Callable[[Problem], np.ndarray | Estimate]
    parameters: Callable[[str], Mapping[str, float]] | None = None

    def parameters_of(self, key: str) -> dict[str, float]:
        """Return the parameters on the series with this key; {} for a method without any."""
        return dict(self.parameters(key)) if self.parameters else {}

    def estimate(self, problem: Problem) -> Estimate:
        """Return what the method makes of a problem."""
        found = self.restore(problem)
        return found if isinstance(found, Estimate) else Estimate(found)


def missing(name: str, kind: Kind, definition: str, reason: BundleError) -> Method:
    """A row that says why it is empty: the rest of the table goes on."""

    def refuse(_: Problem) -> np.ndarray:
        raise reason

    return Method(name, kind, definition, refuse)


def restricted(methods: Sequence[Method], names: Sequence[str] | None) -> list[Method]:
    """Those of `methods` that are named, or all.

    Raises:
        BundleError: for a name that no method has, or what is no list.
    """
    if names is None:
        return list(methods)
    if isinstance(names, str):  # what the command line could not take for a list
        raise BundleError(f"methods '{names}' is no list", hint="put its names in quotes: \"['strength_0.5']\"")
    known = [method.name for method in methods]
    if unknown := [name for name in names if name not in known]:
        raise BundleError(f"method '{unknown[0]}' is unknown", hint=f"use some of {', '.join(known)}")
    return [method for method in methods if method.name in names]
