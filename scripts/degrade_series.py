"""Write a poorer copy of every series in a folder, as derived DICOM: low dose, or thick slices.

python scripts/degrade_series.py IN OUT --dose 0.25
python scripts/degrade_series.py IN OUT --slice_thickness_mm 5
"""

import argparse
import copy
import datetime
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bundle import __version__
from bundle.data.sources import find_cases
from bundle.degrade.slabs import ThickSlices
from bundle.dicom.derived_header import decimal_string
from bundle.dicom.index import read_volume
from bundle.dicom.volume import Volume
from bundle.dicom.writer import Derivation, write_derived_series
from bundle.errors import BundleError, report
from bundle.files import digest, whole_folder


def low_dose(files: tuple[str, ...], *, dose: float, seed: int) -> tuple[Volume, np.ndarray]:
    """The series, and its HU (H, W, D) at a fraction of its dose."""
    from monai.transforms import Compose

    from bundle.degrade.low_dose import Scanner
    from bundle.degrade.transforms import LowDosed, UnitNoised
    from bundle.dicom.reader import LoadSeriesd

    scanner = Scanner(calibrate_noise=True)  # a fraction of the dose that the series has, not of an imitated one
    chain = Compose(
        [LoadSeriesd("image"), UnitNoised("image", seed=seed, scanner=scanner), LowDosed("image", dose=dose)]
    )
    degraded: Any = chain({"image": list(files)})
    return read_volume(files), np.asarray(degraded["image"])[0]


def thick_slices(volume: Volume, thickness_mm: float) -> tuple[Volume, np.ndarray]:
    """A series of slices that are averages of thin ones, without gap or overlap, and its HU (H, W, fewer).

    Headers, rescale and padding are those of the nearest thin slice.

    Raises:
        BundleError: when the slices are as thick already, or too few for two thick ones.
    """
    step_mm, depth = volume.spacing_mm[2], volume.shape[2]
    slabs = ThickSlices(thickness_mm=thickness_mm)
    centres = slabs.centres_mm(depth, step_mm) / step_mm  # in slices
    if not slabs.changes(step_mm) or len(centres) < 2:
        raise BundleError(f"{depth} slices of {step_mm:.4g} mm make no two slices of {thickness_mm:g} mm")
    hu = np.stack([volume.slice_hu(k) for k in range(depth)], axis=2) @ slabs.slab_weights(depth, step_mm).T
    nearest = np.rint(centres).astype(int)
    affine = np.array(volume.affine)
    affine[:3, 3] += centres[0] * affine[:3, 2]
    affine[:3, 2] *= centres[1] - centres[0]
    headers = []
    for k, near in enumerate(nearest):
        header = copy.deepcopy(volume.headers[near])
        header.ImagePositionPatient = [decimal_string(round(v, 6) + 0.0) for v in affine[:3, 3] + k * affine[:3, 2]]
        header.SliceThickness = header.SpacingBetweenSlices = decimal_string(thickness_mm)
        header.pop("SliceLocation", None)
        headers.append(header)
    thick = replace(
        volume,
        stored=np.ascontiguousarray(volume.stored[:, :, nearest].transpose(2, 1, 0)).transpose(2, 1, 0),
        affine=affine,
        headers=tuple(headers),
        slope=volume.slope[nearest],
        intercept=volume.intercept[nearest],
        padding=tuple(volume.padding[near] for near in nearest),
    )
    return thick, hu.astype(np.float32)


def degrade(
    source: Path, target: Path, *, dose: float, seed: int, slice_thickness_mm: float | None = None
) -> list[Path]:
    """Write OUT/<series key>/*.dcm for every series below `source`; return the folders."""
    folders = []
    for case in find_cases(source).cases:
        if slice_thickness_mm is None:
            volume, hu = low_dose(case.files, dose=dose, seed=seed)
            what, settings = f"Low dose simulated in the projection domain, {dose:g} of the series' dose", [dose, seed]
            name = f"dose {dose:g}"
        else:
            volume, hu = thick_slices(read_volume(case.files), slice_thickness_mm)
            what, settings = f"Thin slices averaged to {slice_thickness_mm:g} mm", [slice_thickness_mm]
            name = f"{slice_thickness_mm:g} mm"
        derivation = Derivation(
            description=what,
            series_suffix=name,
            settings_digest=digest(what, *map(str, settings)),
            weights_digest="",
            software_version=__version__,
        )
        with whole_folder(target / case.key) as folder:
            write_derived_series(volume, hu, folder, derivation=derivation, now=datetime.datetime.now())
        folders.append(target / case.key)
    return folders


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--dose", type=float, default=0.25)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--slice_thickness_mm", type=float, help="thick slices in place of low dose")
    arguments = parser.parse_args()
    try:
        for folder in degrade(
            arguments.source,
            arguments.target,
            dose=arguments.dose,
            seed=arguments.seed,
            slice_thickness_mm=arguments.slice_thickness_mm,
        ):
            print(folder)
    except Exception as error:
        return report(error)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
