import pytest
from pydicom.dataset import Dataset, FileDataset
from pydicom.sequence import Sequence

from bundle.dicom.elements import Unusable
from bundle.dicom.frames import flat_headers, is_multi_frame


def group(keyword, **values):
    inner, outer = Dataset(), Dataset()
    for name, value in values.items():
        setattr(inner, name, value)
    setattr(outer, keyword, Sequence([inner]))
    return outer


def enhanced(positions):
    made = FileDataset("", {})
    made.Modality, made.ImageType, made.NumberOfFrames = "CT", ["ORIGINAL"], len(positions)
    shared = group("PixelMeasuresSequence", PixelSpacing=[0.7, 0.8], SliceThickness=2)
    made.SharedFunctionalGroupsSequence = Sequence([shared])
    made.PerFrameFunctionalGroupsSequence = Sequence(
        [group("PlanePositionSequence", ImagePositionPatient=[0, 0, z]) for z in positions]
    )
    return made


def test_each_frame_gets_the_shared_and_its_own_attributes():
    made = enhanced([5, 3])
    headers = flat_headers(made, 2)
    assert [header.ImagePositionPatient[2] for header in headers] == [5, 3]
    assert [header.ReferencedFrameNumber for header in headers] == [1, 2]
    for header in headers:
        assert list(header.PixelSpacing) == [0.7, 0.8] and header.Modality == "CT"
        assert "PerFrameFunctionalGroupsSequence" not in header and "NumberOfFrames" not in header


def test_a_frame_overrules_what_is_shared():
    made = enhanced([5, 3])
    own = group("PixelMeasuresSequence", PixelSpacing=[0.7, 0.8], SliceThickness=4)
    made.PerFrameFunctionalGroupsSequence[1].PixelMeasuresSequence = own.PixelMeasuresSequence
    assert [float(header.SliceThickness) for header in flat_headers(made, 2)] == [2, 4]


def test_the_frames_are_counted():
    assert is_multi_frame(enhanced([1])) and not is_multi_frame(Dataset())
    with pytest.raises(Unusable, match="NumberOfFrames is 3, but 2"):
        flat_headers(enhanced([1, 2]), 3)
