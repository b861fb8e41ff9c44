"""Write a low-dose copy of every series in a folder, as derived DICOM: python scripts/degrade_series.py IN OUT."""

import argparse
import datetime
from pathlib import Path
from typing import Any

import numpy as np

from bundle import __version__
from bundle.data.sources import find_cases
from bundle.dicom.index import read_volume
from bundle.dicom.writer import Derivation, write_derived_series
from bundle.errors import report
from bundle.files import digest, whole_folder


def degrade(source: Path, target: Path, *, dose: float, seed: int) -> list[Path]:
    """Write OUT/<series key>/*.dcm for every series below `source`; return the folders."""
    from monai.transforms import Compose

    from bundle.degrade.low_dose import Scanner
    from bundle.degrade.transforms import LowDosed, UnitNoised
    from bundle.dicom.reader import LoadSeriesd

    scanner = Scanner(calibrate_noise=True)  # a fraction of the dose that the series has, not of an imitated one
    chain = Compose(
        [LoadSeriesd("image"), UnitNoised("image", seed=seed, scanner=scanner), LowDosed("image", dose=dose)]
    )
    folders = []
    for case in find_cases(source).cases:
        degraded: Any = chain({"image": list(case.files)})
        derivation = Derivation(
            description=f"Low dose simulated in the projection domain, {dose:g} of the series' dose",
            series_suffix=f"dose {dose:g}",
            settings_digest=digest("low_dose", "calibrated", str(dose), str(seed)),
            weights_digest="",
            software_version=__version__,
        )
        restored_hu = np.asarray(degraded["image"])[0]
        with whole_folder(target / case.key) as folder:
            write_derived_series(
                read_volume(case.files), restored_hu, folder, derivation=derivation, now=datetime.datetime.now()
            )
        folders.append(target / case.key)
    return folders


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--dose", type=float, default=0.25)
    parser.add_argument("--seed", type=int, default=1000)
    arguments = parser.parse_args()
    try:
        for folder in degrade(arguments.source, arguments.target, dose=arguments.dose, seed=arguments.seed):
            print(folder)
    except Exception as error:
        return report(error)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
