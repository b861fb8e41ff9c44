"""What a run writes: whole folders, exact HU where nothing was touched, a private summary."""

import datetime
import json
import stat

import pytest
from phantom_series import write_phantom_series

from bundle.configuration import exit_code
from bundle.data.sources import find_cases
from bundle.dicom.index import Refusal
from bundle.errors import BundleError, ExitCode
from bundle.restoration.outputs import RunOutput

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5)


def run_output(folder, **changes):
    options = {"settings": {"steps": 1}, "weights_digest": "ab", "now": NOW} | changes
    return RunOutput(folder, **options)


@pytest.fixture
def case(tmp_path):
    write_phantom_series(tmp_path / "in")
    return find_cases(tmp_path / "in").cases[0]


def test_a_finished_series_is_known_by_content_settings_and_weights(tmp_path, case):
    output = run_output(tmp_path / "out")
    assert not output.finished(case)
    folder = tmp_path / "out" / case.key
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"fingerprint": output.fingerprint(case)}))
    output.write_private(folder, {"1.2": "3.4"})
    assert output.finished(case)
    assert not run_output(tmp_path / "out", settings={"steps": 4}).finished(case)
    assert not run_output(tmp_path / "out", weights_digest="cd").finished(case)
    (folder / "summary.json").write_text("{")
    assert not output.finished(case)


def test_a_series_with_a_file_less_is_not_finished(tmp_path, case):
    output = run_output(tmp_path / "out")
    folder = tmp_path / "out" / case.key
    (folder / "dicom").mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"fingerprint": output.fingerprint(case)}))
    (folder / "dicom" / "1.dcm").write_text("pixels")
    output.write_private(folder, {})
    assert output.finished(case)
    (folder / "notes.txt").write_text("of a reader")
    assert output.finished(case), "what was added harms nothing"
    (folder / "dicom" / "1.dcm").unlink()
    assert not output.finished(case)


def test_what_is_known_of_a_finished_series_needs_no_summary_of_a_run(tmp_path, case):
    output = run_output(tmp_path, shard="0/2")
    folder = tmp_path / case.key
    folder.mkdir()
    described = {"fingerprint": output.fingerprint(case), "noise_hu_before": 9.0}
    (folder / "summary.json").write_text(json.dumps(described))
    output.write_private(folder, {"1.2": "3.4"})
    assert stat.S_IMODE((folder / "private.json").stat().st_mode) == 0o600
    later = run_output(tmp_path)  # the former run was killed, and another share
    later.skip(case)
    later.write_summary(complete=False)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["series"][case.key] == {
        "status": "done",
        "source": list(case.files),
        "uid_mapping": {"1.2": "3.4"},
        "result": described,
    }
    assert summary["started"] == "2026-01-02T03:04:05" and summary["complete"] is False


@pytest.mark.parametrize(
    ("foreign", "failed", "tolerate", "expected"),
    [
        (True, False, False, ExitCode.DONE),
        (False, False, False, ExitCode.PARTIAL),
        (False, False, True, ExitCode.DONE),
        (True, True, False, ExitCode.PARTIAL),
    ],
)
def test_summary_is_private_and_sets_the_exit_code(tmp_path, case, foreign, failed, tolerate, expected):
    output = run_output(tmp_path, tolerate_bad_series=tolerate)
    if failed:
        output.fail(case, BundleError("too few slices"))
    assert output.write_summary([Refusal("k", "a gap", "a/b", foreign=foreign)]) == expected == exit_code()
    summary = tmp_path / "summary.json"
    assert stat.S_IMODE(summary.stat().st_mode) == 0o600
    content = json.loads(summary.read_text())
    assert bool(content["refused"]) != foreign and bool(content["failed"]) == failed


def test_a_folder_that_cannot_be_written_is_exit_74(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError) as raised:
        run_output(tmp_path / "file").require_folder()
    assert raised.value.exit_code == ExitCode.IO
