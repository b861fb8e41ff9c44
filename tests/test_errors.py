import errno
import os
import stat
import sys
from pathlib import Path

import pytest

from bundle.errors import BundleError, ExitCode, InterruptedRun, find_bundle_error, install_excepthook, report


def raised(make) -> BaseException:
    """The exception that `make` raises, with its causes and its traceback."""
    with pytest.raises(BaseException) as caught:
        make()
    return caught.value


def wrapped_twice() -> None:
    """As MONAI wraps what a component of a config raises."""
    try:
        try:
            raise BundleError("dataset_dir 'x' is empty", hint="name a folder with CT")
        except BundleError as error:
            raise ValueError("applying transform") from error
    except ValueError as error:
        raise RuntimeError("Failed to instantiate component") from error


def test_exit_codes_are_what_scripts_rely_on():
    assert {code.name: int(code) for code in ExitCode} == {
        "DONE": 0,
        "USER": 2,
        "PARTIAL": 3,
        "DEFECT": 70,
        "IO": 74,
        "INTERRUPTED": 75,
    }


def test_a_bundle_error_says_what_and_what_to_do():
    assert str(BundleError("it is so", hint="do this")) == "it is so (do this)"
    assert str(BundleError("it is so")) == "it is so"
    assert BundleError("it is so").exit_code == ExitCode.USER
    assert InterruptedRun("stopped after step 3").exit_code == ExitCode.INTERRUPTED
    assert "again" in str(InterruptedRun("stopped after step 3"))


def test_a_bundle_error_is_found_through_causes():
    found = find_bundle_error(raised(wrapped_twice))
    assert found is not None
    assert found.message == "dataset_dir 'x' is empty"


def test_a_bundle_error_is_found_through_contexts():
    def make() -> None:
        try:
            raise BundleError("the first")
        except BundleError:
            raise KeyError("while handling")  # noqa: B904

    found = find_bundle_error(raised(make))
    assert found is not None
    assert found.message == "the first"


def test_the_outermost_bundle_error_wins():
    def make() -> None:
        try:
            raise BundleError("inner")
        except BundleError as error:
            raise BundleError("outer") from error

    assert str(find_bundle_error(raised(make))) == "outer"


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.ESTALE]
)
def test_errors_of_the_disk_are_input_output_errors(number):
    def make() -> None:
        try:
            raise OSError(number, os.strerror(number), "/data/DOE^JANE/volume.nii.gz")
        except OSError as error:
            raise RuntimeError("while saving") from error

    found = find_bundle_error(raised(make))
    assert found is not None
    assert found.exit_code == ExitCode.IO
    assert os.strerror(number) in str(found)
    assert "volume.nii.gz" in str(found)
    assert "DOE" not in str(found)  # folders may carry names


def test_an_error_of_the_disk_without_a_file_name_is_found_too():
    found = find_bundle_error(OSError(errno.ENOSPC, "No space left on device"))
    assert found is not None
    assert found.exit_code == ExitCode.IO
    assert "None" not in str(found)


@pytest.mark.parametrize("error", [None, ValueError("x"), FileNotFoundError(2, "No such file", "x"), KeyError("x")])
def test_others_are_none_of_ours(error):
    assert find_bundle_error(error) is None


def test_a_circle_of_causes_ends():
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert find_bundle_error(first) is None


@pytest.mark.parametrize("code", [ExitCode.USER, ExitCode.PARTIAL, ExitCode.IO, ExitCode.INTERRUPTED])
def test_report_prints_one_line_and_returns_the_code(code, capsys):
    assert report(BundleError("first\n  line,\tsecond", hint="do\nthis", exit_code=code)) == code
    printed = capsys.readouterr()
    assert printed.err == "error: first line, second (do this)\n"
    assert printed.out == ""


def test_report_of_a_wrapped_error_is_no_wall(capsys):
    assert report(raised(wrapped_twice)) == ExitCode.USER
    assert capsys.readouterr().err == "error: dataset_dir 'x' is empty (name a folder with CT)\n"


def test_report_of_a_wrapped_defect_names_what_was_wrapped(capsys, in_temporary_folder):
    def make() -> None:
        try:
            raise ZeroDivisionError("by zero")
        except ZeroDivisionError as error:
            raise RuntimeError("Failed to evaluate ConfigExpression") from error

    assert report(raised(make)) == ExitCode.DEFECT
    printed = capsys.readouterr().err
    assert printed.startswith("error: ZeroDivisionError: by zero (a defect of ours")
    assert "ConfigExpression" in logged(printed).read_text()


def test_report_of_a_defect_with_a_circle_of_causes_ends(capsys, in_temporary_folder):
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert report(first) == ExitCode.DEFECT


def test_report_of_an_interruption(capsys):
    assert report(KeyboardInterrupt()) == ExitCode.INTERRUPTED
    assert capsys.readouterr().err.count("\n") == 1


def logged(line: str) -> Path:
    return Path(line.split("traceback in ")[1].rstrip(")\n"))


@pytest.fixture
def in_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_report_of_a_defect_keeps_its_traceback_in_a_private_file(capsys, in_temporary_folder):
    def make() -> None:
        raise ZeroDivisionError("division\nby zero " + "x" * 1000)

    assert report(raised(make)) == ExitCode.DEFECT
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "ZeroDivisionError: division by zero" in printed
    assert len(printed) < 500
    log = logged(printed)
    assert log.parent == in_temporary_folder
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    text = log.read_text()
    assert "Traceback" in text
    assert "raise ZeroDivisionError" in text


def test_report_of_a_defect_names_no_folder_of_a_file(capsys, in_temporary_folder):
    assert report(FileNotFoundError(2, "No such file or directory", "/data/DOE^JANE/1.dcm")) == ExitCode.DEFECT
    printed = capsys.readouterr().err
    assert "FileNotFoundError: No such file or directory: 1.dcm" in printed
    assert "DOE" not in printed


@pytest.mark.parametrize("message", ["'/data/DOE^JANE X/in/1.dcm'", "/data/DOE^JANE/1.dcm", '"DOE^JANE/1.dcm"'])
def test_the_traceback_of_a_defect_names_no_folder_of_a_file(capsys, in_temporary_folder, message):
    def make() -> None:
        try:
            raise FileNotFoundError(2, "No such file or directory", "/data/DOE^JANE/a b/1.dcm")
        except FileNotFoundError as error:
            raise KeyError(f"cannot go on with {message}") from error

    assert report(raised(make)) == ExitCode.DEFECT
    text = logged(capsys.readouterr().err).read_text()
    assert "DOE" not in text and text.count("1.dcm") >= 2
    assert f'File "{__file__}"' in text and "raise KeyError" in text


def test_the_traceback_of_a_defect_goes_to_the_log_where_files_are_lost(capsys, in_temporary_folder, monkeypatch):
    monkeypatch.setenv("CT_ENHANCE_TRACEBACK", "stderr")
    assert report(raised(lambda: {}["nothing"])) == ExitCode.DEFECT
    *trace, line = capsys.readouterr().err.splitlines()
    assert trace[0].startswith("Traceback") and line == "error: KeyError: 'nothing' (a defect of ours; traceback above)"
    assert list(in_temporary_folder.iterdir()) == []


def test_report_of_an_error_of_the_disk_without_a_file_name(capsys, in_temporary_folder):
    assert report(ConnectionError("the peer is gone")) == ExitCode.DEFECT
    assert "ConnectionError: the peer is gone" in capsys.readouterr().err


def test_the_excepthook_prints_one_line_for_ours_and_leaves_others_alone(capsys, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    install_excepthook()
    ours, other = raised(wrapped_twice), ValueError("not ours")
    sys.excepthook(type(ours), ours, ours.__traceback__)
    assert capsys.readouterr().err == "error: dataset_dir 'x' is empty (name a folder with CT)\n"
    seen = []
    monkeypatch.setattr(sys, "__excepthook__", lambda *arguments: seen.append(arguments))
    sys.excepthook(type(other), other, None)
    assert seen == [(ValueError, other, None)]
    assert capsys.readouterr().err == ""
