"""Memory against the length of a study: the script on short ones, and that the length does not matter."""

import pydicom
import pytest
from phantom_series import write_phantom_series
from script_modules import load_script
from thick_series import LIDC

from bundle.dicom.index import read_volume

script = load_script("bench_memory")


def measured(capsys, series, *options):
    """Slices -> own MB, resident MB, seconds, as the script prints them."""
    script.main(["--series", str(series), "--preset", "tiny", *map(str, options)])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    return {int(row[0]): [float(cell) for cell in row[1:]] for row in rows if row and row[0].isdigit()}


def test_a_long_study_is_the_series_again_and_again(tmp_path):
    hu = write_phantom_series(tmp_path / "in", slices=4, size=32)
    script.repeat(tmp_path / "in", tmp_path / "long", 10)
    volume = read_volume(str(tmp_path / "long"))
    assert volume.shape == (32, 32, 10) and volume.spacing_mm[2] == pytest.approx(2.5)
    for k in range(10):
        assert (volume.slice_hu(k) == hu[:, :, k % 4]).all()
    assert len({pydicom.dcmread(path).SOPInstanceUID for path in (tmp_path / "long").iterdir()}) == 10
    script.repeat(tmp_path / "in", tmp_path / "narrow", 2, size=8)
    assert (read_volume(str(tmp_path / "narrow")).hu() == hu[12:20, 12:20, :2]).all()


def test_the_script_prints_both_peaks(tmp_path, capsys):
    write_phantom_series(tmp_path / "in", slices=4, size=64)
    ((own, resident, seconds),) = measured(capsys, tmp_path / "in", "--slices", 4, "--cheap").values()
    assert 100 < own < resident < 4000 and seconds > 0


@pytest.mark.full
@pytest.mark.parametrize("options", [(), ("--nifti",), ("--spacing_mm", 0.9)], ids=["DICOM", "NIfTI", "resampled"])
def test_memory_does_not_follow_the_length_of_a_real_study(capsys, options):
    """Each further slice takes less than 0.2 MB, of its own and of files; its stored values alone are 0.5."""
    if not LIDC.exists():
        pytest.skip("no real series here")
    found = measured(capsys, LIDC, "--slices", 200, 600, "--cheap", *options)
    for peak in (0, 1):
        assert found[600][peak] - found[200][peak] < 400 * 0.2
