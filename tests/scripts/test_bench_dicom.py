import subprocess
import sys
from pathlib import Path

import pytest
from phantom_series import write_phantom_series

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_dicom.py"


def run(*arguments: str) -> str:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_skips_with_one_line_without_data(tmp_path):
    assert run("--data_dir", str(tmp_path)).count("\n") == 1


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs /proc")
def test_measures_ours(tmp_path):
    write_phantom_series(tmp_path, slices=5, size=32)
    assert '"shape": [5, 32, 32]' in run("--measure", "ours", str(tmp_path))
