"""Phases of training: what trains, how fast, and by which losses; a pure function of the iteration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bundle.errors import BundleError
from bundle.training.losses import LOSS_TERMS

GROUPS = ("unet", "vae_encoder", "vae_decoder", "refiner")

# Which losses move a group at all; a phase that trains a group without one would leave it where it is.
_REACHED_BY = {
    "unet": {"target", "unrefined", "refined"},
    "vae_encoder": {"reconstruction", "kl", "adversarial", "perceptual", "target", "unrefined", "refined"},
    "vae_decoder": {"reconstruction", "adversarial", "perceptual", "unrefined", "refined"},
    "refiner": {"refined"},
}
_MOST_MULTIPLIER = 100.0


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase.

    Attributes:
        name: for logs and checkpoints.
        epochs: how long it lasts; 0 leaves it out.
        steps: how long it lasts in steps instead; None counts epochs.
        multipliers: learning-rate multiplier of each parameter group that trains; the others are frozen.
        losses: weight of each loss term (see training.losses).
        start_fraction: part of the samples at the degraded end of the bridge, where every restoration starts; None: the
            process' own. Other processes have no such end.
    """

    name: str
    epochs: int = 0
    steps: int | None = None
    multipliers: Mapping[str, float]
    losses: Mapping[str, float]
    start_fraction: float | None = None

    def __post_init__(self) -> None:
        for key, value in (("epochs", self.epochs), ("steps", self.steps)):
            whole = value is None or (isinstance(value, int) and not isinstance(value, bool))
            _require(
                whole and (value or 0) >= 0,
                f"phase '{self.name}': {key} must be {'0 or more' if whole else 'a whole number'}, not {value}",
            )
        _require_known(self.name, "parameter group", self.multipliers, GROUPS)
        _require_known(self.name, "loss", self.losses, LOSS_TERMS)
        rates = self.multipliers.values()
        _require(
            any(rate > 0 for rate in rates) and all(0 <= rate <= _MOST_MULTIPLIER for rate in rates),
            f"phase '{self.name}': multipliers must be 0 or more, and one above 0, none above {_MOST_MULTIPLIER:.0f}",
        )
        _require(all(0 <= w < float("inf") for w in self.losses.values()), f"phase '{self.name}': a loss is below 0")
        _require(
            self.start_fraction is None or 0 <= self.start_fraction <= 1,
            f"phase '{self.name}': start_fraction must be between 0 and 1, not {self.start_fraction}",
        )
        used = {name for name, weight in self.losses.items() if weight > 0}
        _require(bool(used), f"phase '{self.name}': no loss has a weight")
        for group in sorted(self.trains) if self.lasts else ():
            _require(
                bool(used & _REACHED_BY[group]),
                f"phase '{self.name}': it trains {group}, which none of its losses reaches; "
                f"it needs one of {', '.join(sorted(_REACHED_BY[group]))}",
            )

    @property
    def lasts(self) -> bool:
        """Whether the phase takes place."""
        return self.epochs > 0 if self.steps is None else self.steps > 0

    @property
    def trains(self) -> frozenset[str]:
        """Names of the groups that move."""
        return frozenset(group for group, rate in self.multipliers.items() if rate > 0)

    @property
    def leaves_some_out(self) -> bool:
        """Whether a parameter that trains may get no gradient: the encoder's variance is in two losses only."""
        return "vae_encoder" in self.trains and not self.losses.keys() & {
            "reconstruction",
            "kl",
            "adversarial",
            "perceptual",
        }

    def length(self, epoch_length: int) -> int:
        """Iterations of the phase."""
        return self.epochs * epoch_length if self.steps is None else self.steps


@dataclass(frozen=True)
class Span:
    """A phase and its place in a run: its number, its first iteration and the one behind its last."""

    phase: Phase
    number: int
    first: int
    end: int


class PhasePlan:
    """The phases of a run, one after the other.

    Args:
        phases: mappings with the fields of Phase; those of no length are left out.

    Raises:
        BundleError: for a phase that cannot work, or when nothing is left to do.
    """

    def __init__(self, phases: Sequence[Mapping[str, Any]]) -> None:
        for fields in phases:
            unknown = sorted(fields.keys() - Phase.__dataclass_fields__.keys())
            name = fields.get("name", "?")
            _require(not unknown, f"phase '{name}': unknown key '{''.join(unknown[:1])}'")
        self.phases = [phase for phase in (Phase(**fields) for fields in phases) if phase.lasts]
        _require(bool(self.phases), "no phase has any epochs: there is nothing to train")

    def spans(self, epoch_length: int) -> list[Span]:
        """Where each phase begins and ends when an epoch has so many iterations."""
        spans, first = [], 0
        for number, phase in enumerate(self.phases):
            end = first + phase.length(epoch_length)
            spans.append(Span(phase, number, first, end))
            first = end
        return spans

    def total(self, epoch_length: int) -> int:
        """Iterations of all phases together."""
        return self.spans(epoch_length)[-1].end

    def at(self, iteration: int, epoch_length: int) -> Span:
        """Return the phase of a 0-based iteration; behind the end, the last one."""
        spans = self.spans(epoch_length)
        return next((span for span in spans if iteration < span.end), spans[-1])


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise BundleError(message, hint="change the phases or the *_epochs keys")


def _require_known(phase: str, what: str, given: Mapping[str, float], known: Sequence[str]) -> None:
    for name in given:
        _require(name in known, f"phase '{phase}': {what} '{name}' is unknown; known are {', '.join(known)}")
