"""Makers of small lawful CT series for tests; every value seeded."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom import uid
from pydicom.dataset import FileDataset, FileMetaDataset


def phantom_hu(*, slices: int = 12, size: int = 64, seed: int = 0) -> np.ndarray:
    """Whole HU, float32 (H, W, D): a body with lungs and spine in air, noise, and a mark that counts slices."""
    rng = np.random.default_rng(seed)
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, n) for n in (size, size, slices)), indexing="ij")

    def ellipsoid(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
        return sum(((a - c) / r) ** 2 for a, c, r in zip((i, j, k), centre, radii, strict=True)) <= 1

    hu = np.full(i.shape, -1000.0)
    for centre, radii, value in [
        ((0, 0, 0), (0.85, 0.65, 3), -90),
        ((0, 0, 0), (0.80, 0.60, 3), 50),
        ((-0.4, 0, 0.1), (0.26, 0.4, 1.3), -850),
        ((0.42, 0, 0), (0.22, 0.36, 1.2), -830),
        ((0, 0.42, 0), (0.12, 0.11, 3), 600),
        ((-0.3, 0.05, -0.2), (0.05, 0.05, 0.3), 60),
    ]:
        hu[ellipsoid(centre, radii)] = value
    hu += rng.normal(0, 15, hu.shape)
    hu[1:4, 1:4] = -700 + 20 * np.arange(slices)  # no two slices alike, no axis like another
    return np.clip(np.round(hu), -1024, 3071).astype(np.float32)


def phantom_uid(*parts: object) -> str:
    value = hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:16]
    return f"2.25.{int.from_bytes(value, 'big')}"


def write_phantom_series(
    folder: Path,
    *,
    slices: int = 12,
    size: int = 64,
    spacing: tuple[float, float, float] = (0.8, 0.8, 2.5),
    seed: int = 0,
    patient: str = "phantom-1",
    transfer_syntax: str = uid.ExplicitVRLittleEndian,
    drop: tuple[int, ...] = (),
    series: str = "series",
    hu: np.ndarray | None = None,
    **tags: Any,
) -> np.ndarray:
    """Write a lawful axial CT series and return its HU, float32 (H, W, D), index [i, j, k].

    Args:
        folder: created when absent; file names are in random order.
        slices: number of slices.
        size: rows and columns.
        spacing: mm between columns, rows and slices.
        seed: of noise and file order.
        patient: Patient ID; patients differ in all UIDs.
        transfer_syntax: of all files.
        drop: slices that are not written.
        series: tells series of one patient's study apart.
        hu: written in place of the phantom; whole numbers.
        **tags: further elements by keyword; None removes one, a callable is called with the slice number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    hu = phantom_hu(slices=slices, size=size, seed=seed) if hu is None else hu
    slices = hu.shape[2]
    names = np.random.default_rng([seed, 1]).permutation(slices)
    for k in range(slices):
        if k in drop:
            continue
        dataset = _slice(hu[:, :, k], k, spacing, patient, series)
        for keyword, value in tags.items():
            value = value(k) if callable(value) else value
            if value is None:
                dataset.pop(keyword, None)
            else:
                setattr(dataset, keyword, value)
        _save(dataset, folder / f"IM{names[k]:04d}.dcm", transfer_syntax)
    return hu


def _slice(hu: np.ndarray, k: int, spacing: tuple[float, float, float], patient: str, series: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = uid.CTImageStorage
    meta.MediaStorageSOPInstanceUID = phantom_uid(patient, series, k)
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = uid.CTImageStorage, phantom_uid(patient, series, k)
    ds.StudyInstanceUID, ds.SeriesInstanceUID = phantom_uid(patient, "study"), phantom_uid(patient, series)
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = phantom_uid(patient, "frame"), ""
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Phantom^Test", patient, "", "O"
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = "20240102"
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = "101500"
    ds.AccessionNumber, ds.ReferringPhysicianName, ds.StudyID = "", "", "1"
    ds.Manufacturer, ds.ManufacturerModelName, ds.Modality = "Phantom", "P1", "CT"
    ds.SeriesNumber, ds.AcquisitionNumber, ds.InstanceNumber = 3, 1, k + 1
    ds.SeriesDescription, ds.BodyPartExamined, ds.PatientPosition = "phantom", "CHEST", "HFS"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.KVP, ds.ConvolutionKernel, ds.SliceThickness = "120", "STD", f"{spacing[2]:g}"
    ds.ImagePositionPatient = [f"{v:.10g}" for v in (-20.0, -30.5, 112.25 + k * spacing[2])]
    ds.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    ds.PixelSpacing = [f"{spacing[1]:g}", f"{spacing[0]:g}"]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = hu.shape[1], hu.shape[0]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "-1024", "1", "HU"
    ds.WindowCenter, ds.WindowWidth = "40", "400"
    ds.PixelData = np.ascontiguousarray(((hu.T + 1024).astype(np.int64) & 0xFFFF).astype("<u2")).tobytes()
    ds["PixelData"].VR = "OW"
    return ds


def _save(ds: FileDataset, path: Path, syntax: str) -> None:
    if uid.UID(syntax).is_encapsulated:
        ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        plugin = {uid.RLELossless: "pydicom", uid.JPEGLSLossless: "pyjpegls", uid.JPEG2000Lossless: "pylibjpeg"}[syntax]
        ds.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False)
    elif syntax == uid.ExplicitVRBigEndian:
        ds.PixelData = np.frombuffer(ds.PixelData, "<u2").byteswap().tobytes()
        ds["PixelData"].VR = "OW"
    ds.file_meta.TransferSyntaxUID = uid.UID(syntax)
    pydicom.dcmwrite(path, ds, enforce_file_format=True)
