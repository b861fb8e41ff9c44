"""Training and validation parts of a data set: by patient, and within the slices of the only patient there is."""

from collections.abc import Sequence
from dataclasses import dataclass

from bundle.data.prepared import PreparedCase
from bundle.errors import BundleError
from bundle.files import digest

SAME_PATIENT = "same patient"
OTHER_PATIENTS = "other patients"


@dataclass(frozen=True)
class Part:
    """The slices [start, stop) of a prepared case."""

    case: PreparedCase
    start: int
    stop: int

    @classmethod
    def whole(cls, case: PreparedCase) -> "Part":
        """All slices of a case."""
        return cls(case, 0, case.shape[2])


@dataclass(frozen=True)
class Split:
    """Training and validation parts; `validation_on` says whether the validation patients were trained on."""

    train: tuple[Part, ...]
    validation: tuple[Part, ...]
    validation_on: str


def split(
    cases: Sequence[PreparedCase],
    *,
    patch_slices: int,
    fraction: float = 0.2,
    folders: Sequence[str] = (),
    seed: int = 0,
) -> Split:
    """Split cases so that no patient is on both sides; a single patient's slices where there is only one.

    A patient's side depends on its own digest and the seed alone, so adding patients moves nobody; only while
    the draw leaves a side empty, the patient nearest to it is moved there.

    Sides that the data name themselves (a datalist's folds) go before all that.

    Args:
        cases: all cases.
        patch_slices: slices of a training patch: the distance kept within a single patient.
        fraction: share of the patients that validate, when no folder is named.
        folders: folder names below the data folder whose patients validate.
        seed: changes the draw.

    Raises:
        BundleError: when a named folder holds no case, or all patients would validate.
    """
    patients = sorted({case.patient_key for case in cases})
    if any(case.side for case in cases):  # a datalist's own; it was checked that no patient is on both
        chosen = {case.patient_key for case in cases if case.side == "validation"}
        return _of_chosen(cases, chosen or _drawn(patients, fraction, seed))
    if len(patients) < 2 and not folders:
        return split_slices(max(cases, key=lambda case: case.shape[2]), patch_slices=patch_slices)
    chosen = _named(cases, folders) if folders else _drawn(patients, fraction, seed)
    return _of_chosen(cases, chosen)


def _of_chosen(cases: Sequence[PreparedCase], chosen: set[str]) -> Split:
    train = tuple(Part.whole(case) for case in cases if case.patient_key not in chosen)
    validation = tuple(Part.whole(case) for case in cases if case.patient_key in chosen)
    if not train:
        raise BundleError("no case is left to train on", hint="let fewer patients validate")
    return Split(train, validation, OTHER_PATIENTS)


def split_slices(case: PreparedCase, *, patch_slices: int) -> Split:
    """Train on the first slices of the only patient and validate on the last fifth, a patch apart.

    Raises:
        BundleError: when the series is too short for that.
    """
    slices = case.shape[2]
    validation = max(slices // 5, 1)
    stop = slices - validation - patch_slices
    if stop < patch_slices:
        raise BundleError(
            f"series {case.key} has {slices} slices, too few to train on {patch_slices} at a time and validate apart",
            hint="use a smaller num_slices or more series",
        )
    return Split((Part(case, 0, stop),), (Part(case, slices - validation, slices),), SAME_PATIENT)


def place(patient: str, seed: int) -> float:
    """Where in [0, 1) a patient's draw lies; those below `validation_fraction` validate."""
    return int(digest(str(seed), patient)[:8], 16) / 2**32


def _drawn(patients: Sequence[str], fraction: float, seed: int) -> set[str]:
    # At least one patient validates, and at least one trains: the extremes of the same draw.
    ordered = sorted(patients, key=lambda patient: place(patient, seed))
    return {p for p in ordered[:-1] if place(p, seed) < fraction} | set(ordered[:1])


def _named(cases: Sequence[PreparedCase], folders: Sequence[str]) -> set[str]:
    chosen: set[str] = set()
    for folder in folders:
        found = {case.patient_key for case in cases if folder in case.label.split("/")}
        if not found:
            raise BundleError(f"validation folder '{folder}' holds no usable case", hint="check validation_folders")
        chosen |= found
    return chosen
