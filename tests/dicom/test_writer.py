import datetime
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dciodvfy import DCIODVFY, errors, filled
from phantom_series import write_phantom_series

from bundle.dicom.index import find_series, read_volume
from bundle.dicom.instance import SYNTAXES, Syntax
from bundle.dicom.uids import is_valid_uid
from bundle.dicom.volume import Volume
from bundle.dicom.writer import Derivation, write_derived_series
from bundle.errors import BundleError
from bundle.files import whole_folder

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "ct"
NOW = datetime.datetime(2025, 6, 7, 8, 9, 10, 123)
DERIVATION = Derivation(
    description="noise reduced", series_suffix="enhanced", settings_digest="ab" * 32, weights_digest="cd" * 32,
    software_version="0.1.0",
)  # fmt: skip


def write(volume: Volume, hu: np.ndarray, folder: Path, derivation: Derivation = DERIVATION):
    return write_derived_series(volume, hu, folder, derivation=derivation, now=NOW)


def source(folder: Path, **tags) -> Volume:
    write_phantom_series(folder, **tags)
    return read_volume(str(folder))


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"RescaleSlope": "0.488281", "RescaleType": None},
        {"RescaleIntercept": lambda k: str(-1024 - 8 * k), "RescaleSlope": lambda k: str(1 + k % 3)},
        {"StudyInstanceUID": "", "SeriesInstanceUID": "", "SOPInstanceUID": "", "FrameOfReferenceUID": None},
        {"PixelPaddingValue": 24, "PatientName": "M\xfcller^J", "SpecificCharacterSet": "ISO_IR 100"},
        {"ImageOrientationPatient": ["0", "1", "0", "-1", "0", "0"], "SliceThickness": None, "KVP": None},
    ],
)
def test_an_untouched_volume_comes_back_bit_for_bit(tmp_path, tags):
    volume = source(tmp_path / "in", **tags)
    result = write(volume, volume.array.copy(), tmp_path / "out")
    back = read_volume(str(tmp_path / "out"))
    np.testing.assert_array_equal(back.stored, volume.stored)
    np.testing.assert_array_equal(back.array, volume.array)
    np.testing.assert_array_equal(back.affine, volume.affine)
    assert len(result.paths) == volume.shape[2] and all(path.parent == tmp_path / "out" for path in result.paths)


@pytest.mark.skipif(not DCIODVFY.exists(), reason="dicom3tools is not installed")
@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"BodyPartExamined": "BREAST"},
        {"BodyPartExamined": None, "KVP": None, "SliceThickness": None, "AcquisitionNumber": None},
        {"StudyInstanceUID": "", "SeriesInstanceUID": "no-uid", "SOPInstanceUID": "", "FrameOfReferenceUID": None},
        {"WindowWidth": "0", "SpacingBetweenSlices": "-2.5", "PixelPaddingValue": 24},
    ],
)
def test_dciodvfy_finds_no_error(tmp_path, tags):
    volume = source(tmp_path / "in", slices=3, **tags)
    assert errors(write(volume, volume.array + 3, tmp_path / "out").paths[1]) == set()


def test_header_says_what_it_is(tmp_path):
    volume = source(tmp_path / "in", SmallestImagePixelValue=7, LossyImageCompression="01")
    result = write(volume, volume.array + 1, tmp_path / "out")
    for k, path in enumerate(result.paths):
        ds, before = pydicom.dcmread(path), volume.headers[k]
        assert list(ds.ImageType) == ["DERIVED", "SECONDARY", "AXIAL"]
        assert ds.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
        for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "ImagePositionPatient", "PixelSpacing"):
            assert ds[keyword].value == before[keyword].value, keyword
        assert ds.SeriesInstanceUID == result.series_uid != before.SeriesInstanceUID
        assert ds.SOPInstanceUID == ds.file_meta.MediaStorageSOPInstanceUID == result.sop_uids[k]
        assert ds.SeriesNumber == 1003 and ds.SeriesDescription == "phantom enhanced" and ds.InstanceNumber == k + 1
        assert ds.SourceImageSequence[0].ReferencedSOPInstanceUID == before.SOPInstanceUID
        assert ds.SourceImageSequence[0].PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
        assert ds.ContributingEquipmentSequence[-1].ContributionDescription.count("ab" * 32) == 1
        assert ds.RescaleType == "HU" and ds.LossyImageCompression == "01"
        assert (ds.WindowCenter, ds.WindowWidth) == (40, 400)
        assert "SmallestImagePixelValue" not in ds and "DerivationCodeSequence" not in ds
        assert not any(element.tag.is_private for element in ds)


def test_same_inputs_same_bytes_and_every_input_counts(tmp_path):
    volume = source(tmp_path / "in", slices=3)
    first = write(volume, volume.array + 1, tmp_path / "a")
    again = write(volume, volume.array + 1, tmp_path / "b")
    assert [p.read_bytes() for p in first.paths] == [p.read_bytes() for p in again.paths]
    others = [
        write(volume, volume.array + 2, tmp_path / "c"),
        write(volume, volume.array + 1, tmp_path / "d", Derivation(**{**vars(DERIVATION), "settings_digest": "00"})),
        write(volume, volume.array + 1, tmp_path / "e", Derivation(**{**vars(DERIVATION), "weights_digest": "00"})),
    ]
    uids = {r.series_uid for r in [first, *others]} | {uid for r in [first, *others] for uid in r.sop_uids}
    assert len(uids) == 4 * (1 + 3) and all(map(is_valid_uid, uids))


def test_identifiers_of_a_broken_study_are_replaced_and_mapped(tmp_path):
    text = "4bae1d63-1eeb-4386-bd1b-68e8ba379989"
    with pytest.warns(UserWarning, match="UI"):
        write_phantom_series(tmp_path / "in", slices=3, StudyInstanceUID=text, FrameOfReferenceUID=None)
    volume = read_volume(str(tmp_path / "in"))
    result = write(volume, volume.array, tmp_path / "out")
    ds = pydicom.dcmread(result.paths[0])
    assert result.uid_mapping[text] == ds.StudyInstanceUID and is_valid_uid(ds.StudyInstanceUID)
    assert is_valid_uid(ds.FrameOfReferenceUID)
    assert result.uid_mapping[volume.headers[0].SOPInstanceUID] == result.sop_uids[0]


def test_writing_does_not_change_the_source(tmp_path):
    tags = {"StudyInstanceUID": "", "PatientName": "M\xfcller^J", "SpecificCharacterSet": "ISO_IR 100"}
    volume = source(tmp_path / "in", slices=3, **tags)
    assert (
        write(volume, volume.array, tmp_path / "a").uid_mapping
        == write(volume, volume.array, tmp_path / "b").uid_mapping
    )


@pytest.mark.skipif(not DATA.exists() or not DCIODVFY.exists(), reason="no real data or no dicom3tools here")
@pytest.mark.parametrize("name", ["totalseg_mct", "covidctmd_cap002", "cptac_pda_00189", "lidc_0314", "lungdx_a0001"])
def test_real_series_come_back_exactly_and_clean(tmp_path, name):
    volume = find_series(DATA / name).series[0].load()
    result = write(volume, volume.array, tmp_path)
    back = read_volume(str(tmp_path))
    np.testing.assert_array_equal(back.stored, volume.stored)
    np.testing.assert_array_equal(back.affine, volume.affine)
    assert errors(result.paths[len(result.paths) // 2]) == set()


@pytest.mark.skipif(not DATA.exists() or not DCIODVFY.exists(), reason="no real data or no dicom3tools here")
def test_frames_of_a_multi_frame_object_become_single_images(tmp_path):
    volume = find_series(DATA.parent / "odd" / "enhanced_multiframe_legacy").series[0].load()
    result = write(volume, volume.array, tmp_path)
    items = [pydicom.dcmread(path).SourceImageSequence[0] for path in result.paths]
    assert {item.ReferencedSOPInstanceUID for item in items} == {volume.headers[0].SOPInstanceUID}
    assert sorted(item.ReferencedFrameNumber for item in items) == list(range(1, 9))
    assert len(set(result.sop_uids)) == 8 and errors(result.paths[0]) == set()
    np.testing.assert_array_equal(read_volume(str(tmp_path)).array, volume.array)


@pytest.mark.skipif(not DCIODVFY.exists(), reason="dicom3tools is not installed")
@pytest.mark.parametrize("name", ["rle", "jpeg_ls", "jpeg_2000"])
def test_encoded_outputs_are_exact_clean_and_the_same_instances(tmp_path, name):
    volume = source(tmp_path / "in", slices=3)
    plain = write(volume, volume.array + 3, tmp_path / "plain")
    result = write_derived_series(
        volume, volume.array + 3, tmp_path / name, derivation=DERIVATION, now=NOW, transfer_syntax=name
    )
    assert result.sop_uids == plain.sop_uids and errors(result.paths[1]) == set()
    np.testing.assert_array_equal(read_volume(str(tmp_path / name)).array, volume.array + 3)
    assert sum(p.stat().st_size for p in result.paths) < sum(p.stat().st_size for p in plain.paths)


def test_an_encoder_that_loses_something_publishes_nothing(tmp_path, monkeypatch):
    volume = source(tmp_path / "in", slices=3)
    monkeypatch.setitem(SYNTAXES, "jpeg_ls", Syntax(pydicom.uid.JPEGLSNearLossless, "pyjpegls"))
    compress = pydicom.dataset.FileDataset.compress
    monkeypatch.setattr(
        pydicom.dataset.FileDataset,
        "compress",
        lambda self, *given, **named: compress(self, *given, jls_error=3, **named),
    )
    with pytest.raises(BundleError, match="do not decode to themselves"), whole_folder(tmp_path / "out") as folder:
        write_derived_series(volume, volume.array, folder, derivation=DERIVATION, now=NOW, transfer_syntax="jpeg_ls")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not DATA.exists() or not DCIODVFY.exists(), reason="no real data or no dicom3tools here")
def test_a_real_uneven_series_is_written_clean_when_resampled(tmp_path):
    series = find_series(DATA / "ge_head_tilt", gaps="resample").series[0]
    volume = series.load()
    result = write(volume, volume.array, tmp_path / "out")
    back = find_series(tmp_path / "out").series[0].load()
    np.testing.assert_array_equal(back.stored, volume.stored)
    np.testing.assert_allclose(back.affine, volume.affine, atol=1e-6)
    known = errors(filled(series.paths[20], tmp_path / "source.dcm"))
    for k in (0, 16, 36):  # kept, interpolated, the last
        assert errors(result.paths[k]) <= known
