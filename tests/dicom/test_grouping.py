import numpy as np
from phantom_series import phantom_hu, write_phantom_series

from bundle.dicom.grouping import group_name
from bundle.dicom.index import find_series


def test_slices_without_uid_are_grouped_by_folder():
    assert group_name("a/1", "1.2") == group_name("b/1", "1.2")
    assert group_name("a/1", "") == group_name("a/2", "") != group_name("b/1", "")


def test_times_of_a_perfusion_study_are_told_apart(tmp_path):
    wanted = []
    for time in range(3):
        wanted.append(phantom_hu(seed=time, slices=5))
        write_phantom_series(
            tmp_path / str(time),
            hu=wanted[-1],
            AcquisitionNumber=time + 1,
            SOPInstanceUID=lambda k, time=time: f"1.2.{time}.{k}",
        )
    series = find_series(tmp_path).series
    assert len({s.key for s in series}) == 3
    for one in series:
        volume = one.load()
        number = int(one.headers[0].AcquisitionNumber)
        np.testing.assert_array_equal(volume.array, wanted[number - 1])


def test_two_matrices_are_refused_not_halved(tmp_path):
    for size, drop in ((64, range(6, 12)), (32, range(6))):
        write_phantom_series(tmp_path / str(size), size=size, drop=tuple(drop))
    index = find_series(tmp_path)
    assert not index.series and "matrix" in index.refused[0].reason
