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
    assert output.finished(case)
    assert not run_output(tmp_path / "out", settings={"steps": 4}).finished(case)
    assert not run_output(tmp_path / "out", weights_digest="cd").finished(case)
    (folder / "summary.json").write_text("{")
    assert not output.finished(case)


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
