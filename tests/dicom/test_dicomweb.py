"""DICOMweb against a real Orthanc: what is found, fetched and stored, and what failure says."""

import datetime

import pydicom
import pytest
from orthanc_server import free_port, running_orthanc
from phantom_series import phantom_uid, write_phantom_series

from bundle.dicom import dicomweb
from bundle.dicom.dicomweb import Pacs, RemoteSeries, matching_rule
from bundle.dicom.index import find_series
from bundle.dicom.series import series_key
from bundle.dicom.writer import Derivation, write_derived_series
from bundle.errors import BundleError


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory):
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as server:
        yield server


@pytest.fixture
def pacs(orthanc):
    return Pacs(f"{orthanc.url}/dicom-web")


def stored(orthanc, folder, **options):
    write_phantom_series(folder, **options)
    orthanc.stow(sorted(folder.iterdir()))
    return sorted(folder.iterdir())


def found(pacs, **rule):
    return {one.series_uid: one for one in pacs.series(rule)}


def test_series_are_found_by_rule(orthanc, pacs, tmp_path):
    stored(orthanc, tmp_path / "a", patient="thin", slices=5, SeriesDescription="Chest thin")
    stored(orthanc, tmp_path / "b", patient="thick", slices=3, SeriesDescription="Chest thick")
    both = {phantom_uid(patient, "series"): count for patient, count in [("thin", 5), ("thick", 3)]}
    assert both.items() <= {uid: one.instances for uid, one in found(pacs).items()}.items()
    (only,) = found(pacs, SeriesDescription="*thin*").values()
    assert (only.study_uid, only.series_uid) == (phantom_uid("thin", "study"), phantom_uid("thin", "series"))
    assert only.key == series_key(only.series_uid, ()) and only.series_uid not in repr(only)


def test_pages_are_put_together(orthanc, pacs, tmp_path, monkeypatch):
    for number in range(4):
        stored(orthanc, tmp_path / str(number), patient=f"page-{number}", slices=4)
    whole = found(pacs, SeriesDescription="phantom")
    monkeypatch.setattr(dicomweb, "_PAGE", 3)
    assert found(pacs, SeriesDescription="phantom") == whole and len(whole) >= 4
    place = phantom_uid("page-0", "study"), phantom_uid("page-0", "series")
    assert pacs.instances(*place) == {phantom_uid("page-0", "series", k) for k in range(4)}


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5"])
def test_a_series_is_fetched_as_it_is_stored(orthanc, pacs, tmp_path, syntax):
    patient = f"fetched-{syntax[-1]}"
    files = stored(orthanc, tmp_path / "in", patient=patient, transfer_syntax=syntax)
    (tmp_path / "out").mkdir()
    series = RemoteSeries(phantom_uid(patient, "study"), phantom_uid(patient, "series"), len(files))
    assert pacs.fetch(series, tmp_path / "out") == len(files)
    sent = {dataset.SOPInstanceUID: dataset for dataset in map(pydicom.dcmread, files)}
    for path in (tmp_path / "out").iterdir():
        dataset = pydicom.dcmread(path)
        assert dataset == sent[dataset.SOPInstanceUID]
        assert dataset.file_meta.TransferSyntaxUID == syntax


def test_only_what_is_missing_is_stored(orthanc, pacs, tmp_path):
    write_phantom_series(tmp_path, patient="stored", slices=6)
    files = sorted(tmp_path.iterdir())
    assert pacs.store(files[:2]) == 2
    assert pacs.store(files) == 4
    assert pacs.store(files) == 0
    assert len(pacs.instances(phantom_uid("stored", "study"), phantom_uid("stored", "series"))) == 6


def test_a_series_of_ours_is_known_whatever_it_is_called(orthanc, pacs, tmp_path):
    files = stored(orthanc, tmp_path / "in", patient="derived")
    (series,) = find_series(tmp_path / "in").series
    derivation = Derivation(
        description="a test", series_suffix="", settings_digest="0" * 64, weights_digest="0" * 64, software_version="0"
    )
    volume = series.load()
    now = datetime.datetime(2025, 6, 7)
    result = write_derived_series(volume, volume.array, tmp_path / "out", derivation=derivation, now=now)
    pacs.store(result.paths)
    study = phantom_uid("derived", "study")
    assert pacs.is_derived_by_us(RemoteSeries(study, result.series_uid, len(files)))
    assert not pacs.is_derived_by_us(RemoteSeries(study, phantom_uid("derived", "series"), len(files)))
    assert not pacs.is_derived_by_us(RemoteSeries(study, "1.2.3", 0))


def test_rules():
    assert matching_rule("") == {}
    assert matching_rule("SeriesDescription=*thin*; StudyDate=20260101-") == {
        "SeriesDescription": "*thin*", "StudyDate": "20260101-",
    }  # fmt: skip
    for wrong in ("thin", "SeriesDescripton=x", "=x"):
        with pytest.raises(BundleError, match="KEYWORD=VALUE"):
            matching_rule(wrong)


def code(url):
    with pytest.raises(BundleError) as caught:
        list(Pacs(url).series({}))
    assert phantom_uid("x") not in str(caught.value)
    return caught.value.exit_code


def test_failures_say_whether_trying_again_helps(orthanc):
    assert code(f"{orthanc.url}/nothing-here") == 2
    assert code(f"http://127.0.0.1:{free_port()}/dicom-web") == 74
    assert code("not an address") == 2
