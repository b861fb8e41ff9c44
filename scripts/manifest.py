"""Hold the series that the shipped weights were made with against models/manifest.json.

    python scripts/manifest.py --dataset_dir CT            # are these the series? 0 yes, 2 no
    python scripts/manifest.py --dataset_dir CT --write    # measure them and write what is found

The manifest names each series by its folder and says on which side it is, where it comes from and under which licence;
measured are its key, slices, first and last position along the slice axis and a digest of its HU, which does not depend
on how files are compressed or named: SHA-256 over all slices in order, each as little-endian float32, rows first.
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from bundle.configuration import bundle_root
from bundle.data.sources import find_cases
from bundle.dicom.index import read_volume
from bundle.dicom.volume import Volume
from bundle.errors import BundleError, report
from bundle.files import write_json

MEASURED = ("key", "slices", "first_mm", "last_mm", "hu_sha256")


def measured(key: str, volume: Volume) -> dict[str, Any]:
    """What the manifest holds of a series beside its source."""
    affine, count = volume.affine_ras, volume.shape[2]
    ends = [(affine @ [0, 0, k, 1])[2] for k in (0, count - 1)]
    return {
        "key": key,
        "slices": count,
        "first_mm": round(float(ends[0]), 2),
        "last_mm": round(float(ends[1]), 2),
        "hu_sha256": hu_digest(volume),
    }


def hu_digest(volume: Volume) -> str:
    """SHA-256 of the HU."""
    sha = hashlib.sha256()
    for k in range(volume.shape[2]):
        sha.update(np.ascontiguousarray(volume.slice_hu(k), "<f4").tobytes())
    return sha.hexdigest()


def found_series(dataset_dir: Path, *, gaps: str) -> dict[str, dict[str, Any]]:
    """Folder name -> what is measured of the series in it."""
    cases = find_cases(dataset_dir, gaps=gaps).cases
    return {Path(case.label).name: measured(case.key, read_volume(case.files, gaps=gaps)) for case in cases}


def differences(manifest: dict[str, Any], found: dict[str, dict[str, Any]]) -> list[str]:
    """One line for each series of the manifest that is missing or another."""
    lines = []
    for name, entry in manifest["series"].items():
        if name not in found:
            lines.append(f"{name}: missing")
        elif changed := [field for field in MEASURED if found[name][field] != entry[field]]:
            lines.append(f"{name}: another {', '.join(changed)}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", type=Path, required=True)
    parser.add_argument("--manifest", type=Path, default=Path(bundle_root()) / "models" / "manifest.json")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    try:
        manifest = json.loads(options.manifest.read_text())
        found = found_series(options.dataset_dir, gaps=manifest["gaps"])
        if options.write:
            for name, entry in manifest["series"].items():
                entry |= found.get(name, {})
            write_json(options.manifest, manifest)
        if lines := differences(manifest, found):
            raise BundleError("not the series of the manifest: " + "; ".join(lines))
        print(f"{len(manifest['series'])} series, all as in {options.manifest.name}")
    except Exception as error:
        return report(error)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
