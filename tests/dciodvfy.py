"""The reference checker of DICOM objects (dicom3tools), for tests."""

import subprocess
import sys
from pathlib import Path

import pydicom

from bundle.dicom.uids import is_valid_uid

DCIODVFY = Path(sys.executable).with_name("dciodvfy")


def errors(path: Path) -> set[str]:
    """Its errors, without values."""
    done = subprocess.run([str(DCIODVFY), "-new", str(path)], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    return {line.split(" = <")[0] for line in lines if line.startswith("Error")}


def filled(source: str, path: Path) -> Path:
    """A source image with its empty identifiers filled: that they are missing is no fault of a result."""
    image = pydicom.dcmread(source)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"):
        if not is_valid_uid(str(image.get(keyword, ""))):
            setattr(image, keyword, "2.25.1")
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.save_as(path)
    return path
