"""Arrays on disk hold what they are given, leave nothing behind, and a disk without room is an error of one line."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bundle import pages
from bundle.errors import BundleError, ExitCode
from bundle.pages import Scratch, let_go, plain_pages


def resident_mb() -> float:
    """Resident memory of this process, files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


def test_plain_pages():
    array = plain_pages((2, 3, 4), "i2")
    assert array.shape == (2, 3, 4) and array.dtype == np.int16 and not array.any()
    array[...] = 1
    assert array.sum() == 24


@pytest.mark.parametrize("kind", ["u1", "i2", "f2", "f8"])
def test_values_on_disk_survive_being_let_go(tmp_path, kind):
    array = Scratch(tmp_path)((5, 33, 70), kind)
    assert not array.any()
    values = np.random.default_rng(0).integers(0, 100, array.shape).astype(kind)
    for k in range(5):
        array[k] = values[k]
        let_go(array[k])
    np.testing.assert_array_equal(array, values)
    let_go(array)
    turned = array.transpose(2, 1, 0)[::-1]
    let_go(turned[:, :, 3])
    np.testing.assert_array_equal(turned, values.transpose(2, 1, 0)[::-1])


def test_other_arrays_are_left_alone(tmp_path):
    kept = Scratch(tmp_path)((4,), "i2")
    arrays = plain_pages((1 << 16,), "i2"), np.ones(1 << 16, np.int16), kept[:2]
    for array in arrays:
        array[...] = 7
        let_go(array)
        assert (array == 7).all()


def test_in_memory_without_a_folder():
    assert not Scratch().on_disk and Scratch()((2, 3), "f4").shape == (2, 3)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_what_is_let_go_is_in_memory_no_more(tmp_path):
    array = Scratch(tmp_path)((64, 1 << 20), "u1")
    before = resident_mb()
    for k in range(64):
        array[k] = k
        let_go(array[k])
    assert resident_mb() - before < 16, "of 64 MB"
    for k in range(64):
        assert array[k, ::4096].sum() == 256 * k
    assert resident_mb() - before > 40, "what was not let go of is there: the measurement sees it"


def test_nothing_has_a_name_and_everything_goes_with_the_array(tmp_path):
    array = Scratch(tmp_path)((100, 100), "f4")
    assert list(tmp_path.iterdir()) == []
    part = array[3:5].T
    del array
    gc.collect()
    part[...] = 1
    assert part.all(), "a view keeps the file"
    before = len(pages._mapped)
    del part
    gc.collect()
    assert len(pages._mapped) == before - 1


def test_a_killed_process_leaves_nothing(tmp_path):
    code = (
        "import os, sys; from bundle.pages import Scratch; a = Scratch(sys.argv[1])((1000, 1000), 'f8'); a[:] = 1;"
        "os.kill(os.getpid(), 9)"
    )
    process = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert process.returncode == -9 and list(tmp_path.iterdir()) == []


def test_no_room_is_said_before_anything_is_written(tmp_path):
    with pytest.raises(BundleError, match=r"is full: 1.2e\+\d+ GB are needed there .*--scratch_dir") as raised:
        Scratch(tmp_path)((1 << 60,), "u1")
    assert raised.value.exit_code == ExitCode.IO and list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(BundleError, match="cannot hold a working file") as raised:
        Scratch(tmp_path / "none")((3,), "u1")
    assert raised.value.exit_code == ExitCode.IO
