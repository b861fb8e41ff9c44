import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from bundle.errors import BundleError, ExitCode
from bundle.files import digest, file_digest, remove_parts, require_writable, whole_file, whole_folder, write_json


class Stopped(BaseException):
    """Like KeyboardInterrupt: not an Exception."""


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too, with its text."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def everything(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def usual_mask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_a_whole_folder_appears_with_all_that_is_in_it(tmp_path):
    target = tmp_path / "deep" / "series"
    with whole_folder(target) as temporary:
        (temporary / "dicom").mkdir()
        (temporary / "dicom" / "1.dcm").write_text("one")
        (temporary / "summary.json").write_text("{}")
        assert not target.exists()
    assert contents(target) == {"dicom/1.dcm": "one", "summary.json": "{}"}
    assert everything(target.parent) == ["series"]
    assert mode(target) == 0o755


@pytest.mark.parametrize("kind", [ValueError, Stopped, OSError])
def test_an_interrupted_folder_leaves_nothing(tmp_path, kind):
    with pytest.raises(kind), whole_folder(tmp_path / "series") as temporary:
        (temporary / "half.dcm").write_text("half")
        raise kind
    assert everything(tmp_path) == []


def test_what_a_killed_process_left_is_removed_and_what_another_writes_is_not(tmp_path):
    target = tmp_path / "series"
    code = (
        "import os, pathlib, sys; from bundle.files import whole_folder\n"
        "with whole_folder(pathlib.Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half.dcm').write_text('half'); os.kill(os.getpid(), 9)"
    )
    for name in ("series", "series.other"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=False)
    assert len(everything(tmp_path)) == 2
    with whole_folder(target) as first:
        (first / "a").write_text("a")
        with whole_folder(target) as second:  # as a second process at the same work
            (second / "a").write_text("a")
            assert first.exists()
    (other, mine) = everything(tmp_path)
    assert mine == "series" and other.startswith(".series.other."), "the next one of that name removes it"


def test_what_a_killed_process_left_is_removed(tmp_path):
    remove_parts(tmp_path / "nothing")
    with whole_folder(tmp_path / "series") as temporary:
        (temporary / "1.dcm").write_text("one")
    with pytest.raises(Stopped), whole_folder(tmp_path / "killed") as temporary:
        shutil.copytree(temporary, tmp_path / temporary.name.replace("killed", "left"))
        raise Stopped
    (tmp_path / ".summary.json.123.part").write_text("{")
    left, torn, whole = everything(tmp_path)
    assert torn == ".summary.json.123.part" and left.startswith(".left.") and whole == "series"
    remove_parts(tmp_path)
    assert contents(tmp_path) == {"series/1.dcm": "one"} and everything(tmp_path) == ["series"]


def test_an_interrupted_folder_leaves_the_old_one(tmp_path):
    target = tmp_path / "series"
    with whole_folder(target) as temporary:
        (temporary / "old.dcm").write_text("old")
    with pytest.raises(Stopped), whole_folder(target) as temporary:
        (temporary / "new.dcm").write_text("new")
        raise Stopped
    assert contents(tmp_path) == {"series/old.dcm": "old"}


def test_a_folder_is_replaced_whole(tmp_path):
    target = tmp_path / "series"
    for name in ("old", "new"):
        with whole_folder(target) as temporary:
            (temporary / f"{name}.dcm").write_text(name)
    assert contents(tmp_path) == {"series/new.dcm": "new"}


def test_a_file_is_not_replaced_by_a_folder(tmp_path):
    (tmp_path / "series").write_text("mine")
    with pytest.raises(OSError), whole_folder(tmp_path / "series"):
        pass
    assert contents(tmp_path) == {"series": "mine"}


def test_a_whole_file_appears_when_written(tmp_path):
    target = tmp_path / "deep" / "model.pt"
    with whole_file(target) as temporary:
        temporary.write_text("weights")
        assert not target.exists()
        assert temporary.parent == target.parent  # the same disk, or a rename would copy
    assert contents(tmp_path) == {"deep/model.pt": "weights"}


@pytest.mark.parametrize("kind", [ValueError, Stopped])
def test_an_interrupted_file_leaves_the_old_one(tmp_path, kind):
    target = tmp_path / "model.pt"
    target.write_text("old")
    with pytest.raises(kind), whole_file(target) as temporary:
        temporary.write_text("half")
        raise kind
    assert contents(tmp_path) == {"model.pt": "old"}


def test_a_file_is_replaced_whole(tmp_path):
    target = tmp_path / "model.pt"
    target.write_text("old and longer")
    with whole_file(target) as temporary:
        temporary.write_text("new")
    assert contents(tmp_path) == {"model.pt": "new"}


def test_a_file_never_written_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "model.pt"):
        pass
    assert everything(tmp_path) == []


def test_json_is_readable_and_ends_with_a_line(tmp_path, usual_mask):
    write_json(tmp_path / "metrics.json", {"psnr": 31.5, "names": ["a", "b"]})
    text = (tmp_path / "metrics.json").read_text()
    assert json.loads(text) == {"psnr": 31.5, "names": ["a", "b"]}
    assert text.endswith("}\n")
    assert len(text.splitlines()) > 3
    assert mode(tmp_path / "metrics.json") == 0o644


def test_private_json_is_for_its_owner_only(tmp_path, usual_mask):
    target = tmp_path / "summary.json"
    write_json(target, {"key": "path"}, private=True)
    assert mode(target) == 0o600
    write_json(target, {}, private=False)
    write_json(target, {"key": "other"}, private=True)  # also where an open one was before
    assert mode(target) == 0o600


@pytest.mark.parametrize("content", [{"psnr": float("nan")}, {"psnr": float("inf")}, {"path": Path("x")}])
def test_json_that_others_cannot_read_is_not_written(tmp_path, content):
    (tmp_path / "metrics.json").write_text("old")
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "metrics.json", content)
    assert contents(tmp_path) == {"metrics.json": "old"}


def test_digests_count_boundaries():
    parted = [("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("", "abc"), ("2:ab", "c"), ()]
    assert len({digest(*parts) for parts in parted}) == len(parted)


def test_digests_do_not_tell_text_from_bytes_and_repeat():
    assert digest("HU", b"\x00") == digest(b"HU", "\x00")
    assert len(digest("a")) == 64


def test_the_digest_of_a_file_is_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_digest(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_writable_folder_is_made_and_left_empty(tmp_path):
    folder = tmp_path / "a" / "b"
    assert require_writable(folder, option="output_dir") == folder
    assert everything(folder) == []


def refused(folder: Path) -> BundleError:
    with pytest.raises(BundleError) as caught:
        require_writable(folder, option="output_dir")
    return caught.value


@pytest.mark.parametrize("below", ["", "below"])
def test_a_file_in_place_of_the_folder_is_refused(tmp_path, below):
    (tmp_path / "DOE^JANE").mkdir()
    (tmp_path / "DOE^JANE" / "out").write_text("mine")
    error = refused(tmp_path / "DOE^JANE" / "out" / below)
    assert error.exit_code == ExitCode.IO == 74
    assert "--output_dir" in str(error)
    assert "DOE" not in str(error)
    assert contents(tmp_path) == {"DOE^JANE/out": "mine"}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="every folder is writable to root")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o555)
    try:
        assert refused(tmp_path).exit_code == ExitCode.IO
        assert refused(tmp_path / "new").exit_code == ExitCode.IO
    finally:
        tmp_path.chmod(0o755)
