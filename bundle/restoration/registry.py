"""What is known of weights: a small JSON beside them says for what they are, and how far they can be trusted.

`models/model.json` belongs to `models/model.pt`: task, checksum, the domain they were made for, what a prediction
leaves unknown (for the sampler) and the scale that makes the uncertainty right. Without one, or with one of other
weights, everything works, and the summary says that nothing is known.
"""

import contextlib
import json
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bundle.errors import BundleError
from bundle.files import file_digest

logger = logging.getLogger(__name__)

TASKS = ("denoise", "thin")
DEFAULT_FILE = "model.pt"
_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What makes the deviation of samples right: sqrt((1 + 1/n) ((scale d)^2 + (floor noise)^2 + constant^2)).

    n samples have the deviation d; their mean itself is off by d / sqrt(n). What all samples miss alike is in the
    other terms: it grows with the slice's noise, but not to nothing in a slice without any. What a strength below 1
    leaves out of the restoration is added in quadrature: a posterior mean's error is uncorrelated with what it removed.

    Attributes:
        scale: factor on the samples' deviation.
        floor: in noise levels of the slice.
        constant_hu: in HU.
        known: whether it was measured; else the samples' deviation stays as it is.
        steps: of the samples that it was fitted to; 0 when the card does not say.
    """

    scale: float = 1.0
    floor: float = 0.0
    constant_hu: float = 0.0
    known: bool = False
    steps: int = 0

    def factors(
        self, noise_hu: np.ndarray, *, samples: int, left_out_hu: np.ndarray | float = 0.0
    ) -> tuple[float, np.ndarray]:
        """Return the factor on the deviation, and per slice what is added to it in quadrature, HU (D,).

        Args:
            noise_hu: noise level per slice (D,).
            samples: how many were averaged.
            left_out_hu: what a strength below 1 left out of the restoration (`restored.left_out_hu`), per slice (D,).
        """
        of_mean = math.sqrt(1 + 1 / samples) if self.known else 1.0
        missed_hu = of_mean * np.hypot(self.floor * np.asarray(noise_hu), self.constant_hu)
        return of_mean * self.scale, np.hypot(missed_hu, left_out_hu)


@dataclass(frozen=True, kw_only=True)
class WeightsCard:
    """What is known of one file of weights.

    Attributes:
        name: for people.
        task: one of TASKS; "" when unknown.
        sampler: the process they were trained under; "" when unknown.
        sha256: of the weights; "" when unknown.
        domain: ranges, for `bundle.restoration.domain`; empty when unknown.
        residual_std: what one step leaves unknown, per latent channel in units of the spread; () when unknown.
        calibration: of the samples' deviation.
    """

    name: str = ""
    task: str = ""
    sampler: str = ""
    sha256: str = ""
    domain: dict[str, Any] = field(default_factory=dict)
    residual_std: tuple[float, ...] = ()
    calibration: Calibration = Calibration()

    def calibrates(self, method: str, *, steps: int) -> bool:
        """Whether the calibration was fitted to samples that are drawn so (`DiffusionProcess.method`)."""
        return self.calibration.known and self.sampler in ("", method) and self.calibration.steps == steps


NO_CARD = WeightsCard()


def card_path(weights_file: str | Path) -> Path:
    """Where the card of a weights file lies."""
    return Path(weights_file).with_suffix(".json")


def read_card(weights_file: str | Path) -> WeightsCard:
    """The card of a weights file; NO_CARD where there is none, or it is of other weights.

    Raises:
        BundleError: when there is one that cannot be read.
    """
    path = card_path(weights_file)
    if not path.is_file():
        return NO_CARD
    card = _parsed(path)
    if card.sha256 and Path(weights_file).is_file() and card.sha256 != file_digest(Path(weights_file)):
        logger.warning("%s describes other weights than %s: it is not used", path.name, Path(weights_file).name)
        return NO_CARD
    return card


def task_of(card: WeightsCard, task: str, *, slice_spacing_mm: float | None = None) -> WeightsCard:
    """Return `card` when its weights are for `task`, or it does not say for what they are.

    Raises:
        BundleError: when the task is unknown, the weights are for another one, or thin slices are at no distance.
    """
    _require_task(task)
    if task == "thin" and slice_spacing_mm is None:
        raise BundleError("task 'thin' needs slice_spacing_mm", hint="set --slice_spacing_mm 1, or --task denoise")
    if card.task not in ("", task):
        raise BundleError(
            f"these weights are for task '{card.task}', not '{task}'", hint=f"set --task {card.task}, or name others"
        )
    return card


def objections(card: WeightsCard, *, slice_spacing_mm: float | None) -> tuple[str, ...]:
    """What puts every series of a run outside the weights' domain, in words."""
    if slice_spacing_mm is not None and card.task == "denoise":
        return ("interpolated to thinner slices, for which weights for denoising were not made",)
    return ()


def other_domains(weights_file: str | Path, card: WeightsCard) -> dict[str, dict[str, Any]]:
    """Task -> domain of the weights for other tasks than `card`'s that lie beside these; {} where it says no task."""
    found: dict[str, dict[str, Any]] = {}
    for path in _with_json(Path(weights_file).parent) if card.task else ():
        with contextlib.suppress(BundleError):  # JSON of another kind, or damaged: of weights that are not in use
            one = _parsed(card_path(path))
            if one.domain and one.task in TASKS and one.task != card.task:
                found.setdefault(one.task, one.domain)
    return found


def weights_for(task: str, folder: str | Path) -> str:
    """The weights file of a folder for a task.

    Raises:
        BundleError: when the task is unknown, or the folder has no weights for it.
    """
    _require_task(task)
    fitting = [path for path in _with_json(Path(folder)) if _parsed(card_path(path)).task == task]
    if fitting:
        return str(fitting[0])
    if task == "denoise":
        return str(Path(folder) / DEFAULT_FILE)
    raise BundleError(
        f"there are no weights for task '{task}'",
        hint="name some with --weights_file, or interpolate to thin slices and denoise them with --task denoise",
    )


def _with_json(folder: Path) -> list[Path]:
    """The weights of a folder that have a JSON beside them, by name."""
    files = [path.with_suffix(".pt") for path in sorted(folder.glob("*.json"))]
    return [path for path in files if path.is_file()]


def _require_task(task: str) -> None:
    if task not in TASKS:
        raise BundleError(f"task '{task}' is unknown", hint=f"use one of {', '.join(TASKS)}")


def _calibration(uncertainty: dict[str, Any]) -> Calibration:
    scale, floor, constant_hu = (float(uncertainty.get(name, 0.0)) for name in ("scale", "floor", "constant_hu"))
    if not all(0 <= value < math.inf for value in (scale, floor, constant_hu)):
        raise ValueError("a deviation cannot be below 0")
    steps = int(uncertainty.get("steps", 0))
    return Calibration(scale=scale, floor=floor, constant_hu=constant_hu, known=True, steps=steps)


def _parsed(path: Path) -> WeightsCard:
    try:
        content = json.loads(path.read_text())
        uncertainty = content.get("uncertainty", {})
        scale = uncertainty.get("scale")
        if content["schema"] != _SCHEMA:
            raise ValueError("another schema")
        return WeightsCard(
            name=str(content.get("name", "")),
            task=str(content.get("task", "")),
            sampler=str(content.get("sampler", "")),
            sha256=str(content.get("sha256", "")),
            domain=dict(content.get("domain", {})),
            residual_std=tuple(float(value) for value in uncertainty.get("residual_std", ())),
            calibration=Calibration() if scale is None else _calibration(uncertainty),
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BundleError(
            f"'{path.name}' cannot be read as a description of weights", hint="restore it, or remove it"
        ) from error
