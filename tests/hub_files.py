"""A small data set on the hub: zipped phantoms of as many patients, and archives that are no use."""

import io
import tempfile
import zipfile
from pathlib import Path

from phantom_series import write_phantom_series


def zipped(folder: Path) -> bytes:
    """A ZIP of the DICOM files below a folder."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*.dcm")):
            archive.write(path, path.relative_to(folder))
    return buffer.getvalue()


def hub_files(patients: int, *, slices: int = 4, size: int = 32) -> dict[str, bytes]:
    """Archives by path: patients under one Patient ID, as de-identified data often have them; one empty, one cut."""
    found = {}
    for number in range(patients):
        with tempfile.TemporaryDirectory() as folder:
            series = {"seed": number, "series": f"s{number}", "patient": "anonymous"}
            write_phantom_series(Path(folder), slices=slices, size=size, **series)
            found[f"{('APE', 'non-APE')[number % 2]}/patient{number}.zip"] = zipped(Path(folder))
    return {**found, "APE/empty.zip": b"", "APE/corrupt.zip": found["APE/patient0.zip"][:-400]}
