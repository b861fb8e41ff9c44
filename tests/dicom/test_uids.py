from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from bundle.dicom.uids import derived_uid, is_valid_uid, repaired_identifiers


@given(st.lists(st.text(), min_size=1, max_size=4))
def test_derived_uids_are_valid_and_pure(parts):
    assert is_valid_uid(derived_uid(*parts)) and derived_uid(*parts) == derived_uid(*parts)


def test_boundaries_of_parts_count():
    assert derived_uid("ab", "c") != derived_uid("a", "bc")


def test_validity():
    assert is_valid_uid("1.2.840.10008.1.2") and is_valid_uid("2.25.0")
    for bad in (
        "",
        "1",
        "1.02",
        "1..2",
        "1.2.",
        "1.a",
        "1." + "2" * 70,
        "4bae1d63-1eeb-4386-bd1b-68e8ba379989",
        "1.2\n",
    ):
        assert not is_valid_uid(bad), bad


def headers(**values):
    made = []
    for k in range(3):
        header = Dataset()
        for keyword, value in values.items():
            setattr(header, keyword, value(k) if callable(value) else value)
        made.append(header)
    return made


def test_valid_identifiers_stay():
    source = headers(
        StudyInstanceUID="1.2", SeriesInstanceUID="1.3", FrameOfReferenceUID="1.4", SOPInstanceUID=lambda k: f"1.5.{k}"
    )
    result = repaired_identifiers(source, key="k")
    assert (result.study, result.series, result.frame_of_reference) == ("1.2", "1.3", "1.4")
    assert result.instances == ("1.5.0", "1.5.1", "1.5.2") and result.mapping == {}


def test_series_of_one_broken_study_stay_together():
    shared = {"StudyInstanceUID": "", "PatientID": "p", "StudyDate": "20200101"}
    a = repaired_identifiers(headers(**shared, SeriesInstanceUID=""), key="a")
    b = repaired_identifiers(headers(**shared, SeriesInstanceUID=""), key="b")
    other = repaired_identifiers(headers(**{**shared, "PatientID": "q"}, SeriesInstanceUID=""), key="a")
    assert a.study == b.study != other.study
    assert a.series != b.series and a.frame_of_reference != b.frame_of_reference
    uids = [a.study, a.series, a.frame_of_reference, *a.instances]
    assert len(set(uids)) == len(uids) and all(map(is_valid_uid, uids))


def test_invalid_text_is_replaced_by_the_same_uid_everywhere():
    text = "4bae1d63-1eeb-4386-bd1b-68e8ba379989"
    a = repaired_identifiers(headers(StudyInstanceUID=text, SeriesInstanceUID="1.3"), key="a")
    b = repaired_identifiers(headers(StudyInstanceUID=text, SeriesInstanceUID="1.4"), key="b")
    assert a.study == b.study == a.mapping[text]
