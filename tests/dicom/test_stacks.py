import numpy as np
from pydicom.dataset import Dataset

from bundle.dicom.geometry import Plane
from bundle.dicom.slices import Slice
from bundle.dicom.stacks import Placed, in_order, share_places, split_parts, split_passes


def placed(height, *, row=(1.0, 0.0, 0.0), name="", **tags):
    header = Dataset()
    for keyword, value in tags.items():
        setattr(header, keyword, value)
    place = Plane(np.array([0, 0, float(height)]), np.array(row), np.array([0, 1.0, 0]), (1, 1))
    return Placed(Slice(name or f"{height}", None, header), place)


def test_parts_differ_in_orientation_kernel_or_voltage():
    slices = [placed(0), placed(1), placed(0, ConvolutionKernel="B70"), placed(1, KVP="80"), placed(2, row=(0, 0, 1.0))]
    parts = split_parts(slices)
    assert sorted(len(part) for part in parts.values()) == [1, 1, 1, 2]
    assert any("kernel B70" in label for label in parts) and any("KVP 80" in label for label in parts)


def test_order_is_by_place_then_by_identifier():
    a, b, c = placed(2), placed(1, name="x", SOPInstanceUID="1.2"), placed(1.0000001, name="a", SOPInstanceUID="1.3")
    assert in_order([a, c, b]) == [b, c, a]
    assert share_places([b, c, a]) and not share_places([b, a])


def test_passes_need_an_element_that_tells_whole_stacks_apart():
    stack = in_order([placed(k, AcquisitionNumber=n, TriggerTime=str(k)) for k in range(3) for n in (1, 2)])
    assert {label: len(items) for label, items in split_passes(stack).items()} == {
        "AcquisitionNumber 1": 3,
        "AcquisitionNumber 2": 3,
    }
    assert split_passes(in_order([placed(0), placed(1), placed(1)])) == {}
