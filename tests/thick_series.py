"""Thick series made of thin ones by the script that users have, for tests."""

from pathlib import Path

from script_modules import load_script

from bundle.dicom.index import find_series
from bundle.dicom.volume import Volume

ROOT = Path(__file__).resolve().parents[1]
LIDC = ROOT.parent / "shared" / "data" / "ct" / "lidc_0314"


def degrade_series():
    """The script as a module."""
    return load_script("degrade_series")


def write_thick(source: Path, target: Path, thickness_mm: float) -> Volume:
    """Write the series below `source` with slices of that thickness; returns it as read back."""
    (folder,) = degrade_series().degrade(source, target, dose=1.0, seed=0, slice_thickness_mm=thickness_mm)
    (series,) = find_series(folder).series
    return series.load()
