"""Round trips with the real parts: real series, the reference checker, other people's readers, a real PACS."""

import datetime
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from orthanc_server import Orthanc, running_orthanc
from phantom_series import write_phantom_series
from pydicom import uid

from bundle.dicom.index import find_series
from bundle.dicom.series import Series
from bundle.dicom.uids import is_valid_uid, repaired_identifiers
from bundle.dicom.writer import Derivation, DerivedSeries, write_derived_series

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "ct"
UNEVEN = "ge_head_tilt"  # its spacing changes inside the series
QUICK = ("cptac_pda_00189", "totalseg_mct")
NAMES = sorted(path.name for path in DATA.iterdir() if path.name != UNEVEN) if DATA.exists() else []
REAL = [pytest.param(name, marks=() if name in QUICK else pytest.mark.full) for name in NAMES]
NOW = datetime.datetime(2025, 6, 7, 8, 9, 10)

needs_data = pytest.mark.skipif(not NAMES, reason="no real series here")


def only(folder: Path, *, gaps: str = "refuse") -> Series:
    (series,) = find_series(folder, gaps=gaps).series
    return series


def derive(
    source: Path, target: Path, *, change: int = 0, settings: str = "identity", gaps: str = "refuse"
) -> DerivedSeries:
    volume = only(source, gaps=gaps).load()
    derivation = Derivation(
        description="round trip", series_suffix="derived", software_version="0.1.0",
        settings_digest=hashlib.sha256(settings.encode()).hexdigest(), weights_digest="00" * 32,
    )  # fmt: skip
    return write_derived_series(volume, volume.array + change, target, derivation=derivation, now=NOW)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def tool(name: str) -> str:
    """Path of a tool beside this Python or on PATH, or a skip that says so."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.is_file() else shutil.which(name) or pytest.skip(f"{name} is not installed")


# ---- identity: bit for bit, and nothing that the reference checker finds wrong ------------------------------


def errors(path: Path) -> set[str]:
    """Errors of dciodvfy, without values."""
    done = subprocess.run([tool("dciodvfy"), "-new", str(path)], capture_output=True, text=True, errors="replace")
    lines = (done.stdout + done.stderr).splitlines()
    return {line.split(" = <")[0] for line in lines if line.startswith("Error")}


def errors_of_source(series: Series, k: int, target: Path) -> set[str]:
    """Errors of slice `k` of the input once its identifiers are filled in: those are no fault of the writer's."""
    dataset = pydicom.dcmread(series.paths[k])
    filled = repaired_identifiers(series.headers, key=series.key)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = uid.CTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = filled.instances[k]
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = filled.study, filled.series
    dataset.FrameOfReferenceUID = filled.frame_of_reference
    dataset.save_as(target)
    return errors(target)


@needs_data
@pytest.mark.parametrize("name", REAL)
def test_identity_gives_back_every_stored_value(tmp_path, name):
    before = digests(DATA / name)
    result = derive(DATA / name, tmp_path)
    source, back = only(DATA / name).load(), only(tmp_path).load()
    np.testing.assert_array_equal(back.stored, source.stored)
    np.testing.assert_array_equal(back.array, source.array)
    np.testing.assert_array_equal(back.affine, source.affine)
    np.testing.assert_array_equal(back.slope, source.slope)
    np.testing.assert_array_equal(back.intercept, source.intercept)
    uids = [result.series_uid, *result.sop_uids, back.headers[0].StudyInstanceUID, back.headers[0].FrameOfReferenceUID]
    assert len(set(uids)) == len(uids) == source.shape[2] + 3 and all(map(is_valid_uid, uids))
    assert digests(DATA / name) == before


@needs_data
@pytest.mark.parametrize("name", REAL)
def test_dciodvfy_finds_no_error_that_the_source_lacks(tmp_path, name):
    tool("dciodvfy")
    result = derive(DATA / name, tmp_path / "out")
    series = only(DATA / name)
    every = max(1, len(result.paths) // 12) if name in QUICK else 1
    for k in range(0, len(result.paths), every):
        new = errors(result.paths[k])
        assert not new or new <= errors_of_source(series, k, tmp_path / "source.dcm"), k


@needs_data
def test_a_series_whose_spacing_changes_is_refused():
    index = find_series(DATA / UNEVEN)
    assert index.series == [] and "spacing of slices is irregular" in index.refused[0].reason


@needs_data
def test_resampled_by_true_positions_it_passes(tmp_path):
    tool("dciodvfy")
    result = derive(DATA / UNEVEN, tmp_path / "out", gaps="resample")
    series, back = only(DATA / UNEVEN, gaps="resample"), only(tmp_path / "out").load()
    volume = series.load()
    np.testing.assert_array_equal(back.array, volume.array)
    np.testing.assert_allclose(back.affine, volume.affine, rtol=0, atol=1e-3)
    allowed = set().union(*(errors_of_source(series, k, tmp_path / "source.dcm") for k in range(3)))
    for path in result.paths[:: max(1, len(result.paths) // 12)]:
        assert errors(path) <= allowed


# ---- other readers see the same ----------------------------------------------------------------------------


def phantom(folder: Path, kind: str) -> Path:
    tilted = {"ImagePositionPatient": lambda k: ["-20", f"{-30.5 + k * 0.5:g}", f"{112.25 + k * 2.5:g}"]}
    oblique = {
        "ImageOrientationPatient": ["0.96", "0.28", "0", "-0.28", "0.96", "0"],
        "ImagePositionPatient": lambda k: ["-20", "-30.5", f"{112.25 - k * 2.5:g}"],
    }
    write_phantom_series(folder, **{"phantom": {}, "tilted": tilted, "oblique": oblique}[kind])
    return folder


def source_of(name: str, folder: Path) -> Path:
    return DATA / name if name in NAMES else phantom(folder, name)


SOURCES = ["phantom", "tilted", "oblique", *REAL]


@pytest.mark.parametrize("name", SOURCES)
def test_simpleitk_sees_the_same(tmp_path, name):
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    source = source_of(name, tmp_path / "in")
    derive(source, tmp_path / "out")
    seen = []
    for folder in (source, tmp_path / "out"):
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
        seen.append(reader.Execute())
    before, after = seen
    assert after.GetSize() == before.GetSize()
    for method in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(after, method)(), getattr(before, method)(), rtol=0, atol=1e-9)
    np.testing.assert_array_equal(sitk.GetArrayViewFromImage(after), sitk.GetArrayViewFromImage(before))


@pytest.mark.parametrize("name", SOURCES)
def test_dcm2niix_sees_the_same(tmp_path, name):
    converter = tool("dcm2niix")
    source = source_of(name, tmp_path / "in")
    derive(source, tmp_path / "out")
    seen = []
    for number, folder in enumerate((source, tmp_path / "out")):
        target = tmp_path / f"nifti{number}"
        target.mkdir()
        command = [converter, "-z", "n", "-b", "n", "-f", "image", "-o", str(target), str(folder)]
        subprocess.run(command, check=True, capture_output=True)
        seen.append({path.name: nibabel.load(path) for path in sorted(target.glob("*.nii"))})
    before, after = seen
    assert before and after.keys() == before.keys()
    for file, image in before.items():  # dcm2niix also writes a straightened copy of a tilted series
        np.testing.assert_allclose(after[file].affine, image.affine, rtol=0, atol=1e-4)  # float32
        np.testing.assert_array_equal(after[file].dataobj, image.dataobj)


# ---- a real PACS -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory):
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as server:
        yield server


def returned(server: Orthanc, folder: Path) -> None:
    """The server gives back, by WADO-RS, what the files of a series hold."""
    sent = {dataset.SOPInstanceUID: dataset for dataset in map(pydicom.dcmread, sorted(folder.iterdir()))}
    first = next(iter(sent.values()))
    received = server.web().retrieve_series(first.StudyInstanceUID, first.SeriesInstanceUID)
    assert len(received) == len(sent)
    for dataset in received:
        assert dataset == sent[dataset.SOPInstanceUID]
        assert dataset.PixelData == sent[dataset.SOPInstanceUID].PixelData


@pytest.mark.parametrize("way", ["c_store", "stow"])
@pytest.mark.parametrize("name", ["phantom", pytest.param("totalseg_mct", marks=needs_data)])
def test_a_pacs_gives_back_what_it_took(orthanc, tmp_path, name, way):
    source = source_of(name, tmp_path / "in")
    before = digests(source)
    result = derive(source, tmp_path / "out", change=1, settings=way)
    assert getattr(orthanc, way)(result.paths) == [0] * len(result.paths)
    returned(orthanc, tmp_path / "out")
    if way == "stow":  # C-STORE carries no group 2, which the server therefore makes anew
        assert [orthanc.file(sop_uid) for sop_uid in result.sop_uids] == [path.read_bytes() for path in result.paths]
    assert digests(source) == before


def test_a_derived_series_joins_its_study_and_leaves_the_original(orthanc, tmp_path):
    write_phantom_series(tmp_path / "in", patient="joined")
    result = derive(tmp_path / "in", tmp_path / "out", change=1)
    assert set(orthanc.c_store(sorted((tmp_path / "in").iterdir()))) == {0}
    assert set(orthanc.c_store(result.paths)) == {0}
    returned(orthanc, tmp_path / "in")
    returned(orthanc, tmp_path / "out")
    study = pydicom.dcmread(result.paths[0]).StudyInstanceUID
    found = orthanc.web().search_for_series(study)
    assert len(found) == 2 and result.series_uid in [series["0020000E"]["Value"][0] for series in found]


def test_the_server_of_these_tests_takes_nothing_from_strangers(orthanc, tmp_path):
    write_phantom_series(tmp_path, patient="stranger", slices=1)
    assert 0 not in orthanc.c_store(sorted(tmp_path.iterdir()), title="STRANGER")
