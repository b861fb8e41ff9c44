"""Phases of training: what trains, how fast, and by which losses; a pure function of the epoch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bundle.errors import BundleError
from bundle.training.losses import LOSS_TERMS

GROUPS = ("unet", "vae_encoder", "vae_decoder", "refiner")


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase.

    Attributes:
        name: for logs and checkpoints.
        epochs: how long it lasts; 0 leaves it out.
        multipliers: learning-rate multiplier of each parameter group that trains; the others are frozen.
        losses: weight of each loss term (see training.losses).
    """

    name: str
    epochs: int
    multipliers: Mapping[str, float]
    losses: Mapping[str, float]

    def __post_init__(self) -> None:
        _require(self.epochs >= 0, f"phase '{self.name}': epochs must be 0 or more, not {self.epochs}")
        _require_known(self.name, "parameter group", self.multipliers, GROUPS)
        _require_known(self.name, "loss", self.losses, LOSS_TERMS)
        _require(
            any(rate > 0 for rate in self.multipliers.values()) and all(r >= 0 for r in self.multipliers.values()),
            f"phase '{self.name}': multipliers must be 0 or more, and one above 0",
        )
        _require(any(weight > 0 for weight in self.losses.values()), f"phase '{self.name}': no loss has a weight")

    @property
    def trains(self) -> frozenset[str]:
        """Names of the groups that move."""
        return frozenset(group for group, rate in self.multipliers.items() if rate > 0)


class PhasePlan:
    """The phases of a run, one after the other.

    Args:
        phases: mappings with the fields of Phase; those of 0 epochs are left out.

    Raises:
        BundleError: for a phase that cannot work, or when nothing is left to do.
    """

    def __init__(self, phases: Sequence[Mapping[str, Any]]) -> None:
        self.phases = [phase for phase in (Phase(**fields) for fields in phases) if phase.epochs > 0]
        _require(bool(self.phases), "no phase has any epochs: there is nothing to train")

    @property
    def max_epochs(self) -> int:
        """Epochs of all phases together."""
        return sum(phase.epochs for phase in self.phases)

    def at(self, epoch: int) -> tuple[Phase, int, int]:
        """Return the phase of a 0-based epoch, and the phase's first epoch and its number."""
        first = 0
        for number, phase in enumerate(self.phases):
            if epoch < first + phase.epochs:
                return phase, first, number
            first += phase.epochs
        raise ValueError(f"epoch {epoch} lies behind the last phase, which ends at {first}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise BundleError(message, hint="change the phases or the *_epochs keys")


def _require_known(phase: str, what: str, given: Mapping[str, float], known: Sequence[str]) -> None:
    for name in given:
        _require(name in known, f"phase '{phase}': {what} '{name}' is unknown; known are {', '.join(known)}")
