"""Preparation ahead of a training, and what a person is told about it."""

from collections import Counter
from pathlib import Path

from bundle.configuration import set_exit_code
from bundle.data.assembly import TrainingData
from bundle.data.splits import Part
from bundle.errors import ExitCode
from bundle.files import require_writable


def prepare_ahead(data: TrainingData, output_folder: Path) -> None:
    """Prepare all cases into the output folder's cache, write data.json, print how many are used, skipped and why.

    Sets exit code 3 when something was skipped that should have been usable.

    Raises:
        BundleError: when the folder cannot be written to, or nothing is usable.
    """
    require_writable(output_folder, option="output_dir")
    data.prepare_all()
    data.write_summary(output_folder / "data.json")
    print("\n".join(told(data)))
    set_exit_code(ExitCode.PARTIAL if data.lost else ExitCode.DONE)


def told(data: TrainingData) -> list[str]:
    """Lines: how many cases are used, skipped and why, and who trains and validates; keys, no names."""
    present = data.present
    train, validation = present.train, present.validation
    used = {part.case.key: part.case for part in (*train, *validation)}
    pairs = sum(case.paired for case in used.values())
    patients = len({case.patient_key for case in used.values()})
    lines = [
        f"{len(used)} cases of {patients} patients are used"
        + (f", {pairs} of them with a real poor partner" if pairs else ""),
        f"{len(data.skipped)} skipped" + (":" if data.skipped else ""),
    ]
    lines += [f"  {number} x {reason}" for reason, number in Counter(data.skipped.values()).most_common()]
    for name, parts in (("train", train), (f"validate ({present.validation_on})", validation)):
        lines.append(f"{name}: {len(parts)}")
        lines += [_line(part) for part in parts]
    return lines


def _line(part: Part) -> str:
    height, width, _ = part.case.shape
    spacing = " x ".join(f"{value:.2f}" for value in part.case.spacing_mm)
    return f"  {part.case.key}  {height} x {width}, slices {part.start} to {part.stop - 1}, {spacing} mm"
