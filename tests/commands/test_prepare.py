import json

import pytest
from phantom_series import write_phantom_series
from training_fixtures import write_phantoms

from bundle.commands.main import main
from bundle.errors import ExitCode

QUICK = ["--noise_realisations", "1", "--num_slices", "4"]


@pytest.fixture
def scans(tmp_path):
    return write_phantoms(tmp_path / "scans", patients=3)


def test_what_is_used_skipped_and_why_is_printed_with_the_split(scans, tmp_path, capsys):
    write_phantom_series(scans / "gap", patient="x", slices=8, drop=(3,))
    assert main(["prepare", str(scans), "--output_dir", str(tmp_path / "run"), *QUICK]) == ExitCode.PARTIAL
    out = capsys.readouterr().out
    assert "3 cases of 3 patients are used" in out and "1 skipped:\n  1 x " in out and "gap" in out
    assert "train: 2" in out and "validate (other patients): 1" in out
    assert "phantom-" not in out and str(tmp_path) not in out
    summary = json.loads((tmp_path / "run" / "data.json").read_text())
    assert summary["cases"] == {"used": 3, "skipped": 1} and len(summary["train"]) == 2
    assert len([path for path in (tmp_path / "run" / "cache").iterdir() if not path.name.startswith(".")]) == 3


def test_nothing_usable_and_mistakes_are_one_line(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for arguments in (
        [],
        ["--output_dir", "x"],
        [str(tmp_path / "empty"), "--output_dir", str(tmp_path / "run")],
        [str(tmp_path / "empty")],
        [str(tmp_path), "more", "--output_dir", "x"],
        [str(tmp_path / "empty"), "--output_dir", str(tmp_path / "run"), "--degradatoin", "none"],
    ):
        assert main(["prepare", *arguments]) == ExitCode.USER
        error = capsys.readouterr().err.strip().splitlines()
        assert error[-1].startswith("error: ") and str(tmp_path) not in error[-1]
