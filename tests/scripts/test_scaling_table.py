"""The page shows what the script calculates, and the calculation behaves."""

from dataclasses import replace
from pathlib import Path

import pytest
from script_modules import load_script

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def scaling():
    return load_script("scaling_table")


def test_the_page_shows_this_table(scaling):
    flops = scaling.flops_per_slice("small")
    page = (ROOT / "docs" / "scaling.md").read_text()
    assert scaling.table(flops) in page and f"{flops / 1e9:.0f} GFLOP" in page


def test_time_goes_with_the_work_until_the_files_are_slower(scaling):
    gpu = scaling.Gpu("any", 100, 1)
    assert scaling.gpu_seconds_per_study(2e12, gpu) == pytest.approx(2 * scaling.gpu_seconds_per_study(1e12, gpu))
    assert scaling.gpu_seconds_per_study(2e12, replace(gpu, peak_tflops=200)) == pytest.approx(
        scaling.gpu_seconds_per_study(1e12, gpu)
    )
    floor = scaling.SLICES_PER_STUDY * scaling.DICOM_CORE_SECONDS_PER_SLICE / scaling.CORES_PER_GPU
    assert scaling.gpu_seconds_per_study(1.0, gpu) == floor


def test_hours_as_people_read_them(scaling):
    assert [scaling.spoken(hours) for hours in (0.5, 3, 240)] == ["30 min", "3.0 h", "10 d"]
