import numpy as np
import pytest
from pydicom.dataset import Dataset

from bundle.dicom.checks import (
    check_one_frame,
    check_one_patient,
    check_unique_instances,
    frames_of_reference,
    notes_on,
)
from bundle.dicom.elements import Unusable


def headers(*values, keyword="FrameOfReferenceUID"):
    made = []
    for value in values:
        header = Dataset()
        setattr(header, keyword, value)
        made.append(header)
    return made


def test_frames_of_reference():
    assert frames_of_reference(headers("1.2", "1.2", "1.2")) == 1
    assert frames_of_reference(headers("1.2", "1.2", "1.3")) == 2
    assert frames_of_reference(headers("1.1", "1.2", "1.3")) == 1  # one of its own each: says nothing


def test_one_patient_whatever_the_name_s_character_set():
    same = headers("p", "p", keyword="PatientID")
    same[0].PatientName, same[1].PatientName = "A^B", "B^A"
    check_one_patient(same)
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID"):
        with pytest.raises(Unusable, match="more than one"):
            check_one_patient(headers("1.2", "1.3", keyword=keyword))
    with pytest.raises(Unusable):
        check_one_patient(headers("p", "", keyword="PatientID"))


def test_one_matrix():
    check_one_frame(headers(64, 64, keyword="Rows"))
    with pytest.raises(Unusable, match="matrix"):
        check_one_frame(headers(64, 32, keyword="Rows"))


def test_instances_are_unique_or_empty_or_frames():
    check_unique_instances(headers("", "", keyword="SOPInstanceUID"))
    double = headers("1.2", "1.2", keyword="SOPInstanceUID")
    with pytest.raises(Unusable, match="SOPInstanceUID"):
        check_unique_instances(double)
    for number, header in enumerate(double, start=1):
        header.ReferencedFrameNumber = number
    check_unique_instances(double)


def test_notes_name_what_is_odd():
    header = headers("1.2")[0]
    header.StudyInstanceUID = header.SeriesInstanceUID = header.SOPInstanceUID = "1.2"
    assert notes_on(header, np.eye(4)) == []
    header.PixelPaddingValue = 0
    header.SeriesInstanceUID = ""
    sheared = np.eye(4)
    sheared[1, 2] = 0.3
    said = " ".join(notes_on(header, sheared))
    assert all(word in said for word in ("tilt", "padding", "SeriesInstanceUID"))
