import hashlib
import io
import subprocess
import tarfile

import pytest
from script_modules import load_script

from bundle.errors import BundleError


@pytest.fixture
def script():
    return load_script("fetch_sample_data")


def add(tar, name, content=b"slice", kind=tarfile.REGTYPE):
    member = tarfile.TarInfo(name)
    member.type, member.size, member.linkname = kind, len(content) if kind == tarfile.REGTYPE else 0, "/etc/passwd"
    tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def archive(script, tmp_path):
    """An archive like the real one, with members that try to escape."""

    def make(slices=20):
        path = tmp_path / "package.tar.gz"
        with tarfile.open(path, "w:gz") as tar:
            for number in range(slices):
                add(tar, f"{script.SERIES}/CT.{number}")
            add(tar, f"{script.SERIES}/../../escaped")
            add(tar, f"{script.SERIES}/deeper/file")
            add(tar, "/absolute")
            add(tar, f"{script.SERIES}/link", kind=tarfile.SYMTYPE)
            add(tar, "totalsegmentator-2.18.0/setup.py")
        script.SHA256 = hashlib.sha256(path.read_bytes()).hexdigest()
        return path

    return make


def test_only_the_slices_are_extracted(script, archive, tmp_path):
    target = tmp_path / "cache" / "series"
    script.extract(archive(), target)
    assert sorted(path.name for path in target.iterdir()) == sorted(f"CT.{number}" for number in range(20))
    assert [path.name for path in target.parent.iterdir()] == ["series"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "package.tar.gz"]


def test_a_second_call_needs_no_network(script, archive, tmp_path, monkeypatch):
    script.extract(archive(), tmp_path / "series")
    monkeypatch.setattr(subprocess, "run", None)
    assert script.fetch(tmp_path / "series") == tmp_path / "series"


def test_a_wrong_checksum_leaves_nothing(script, archive, tmp_path):
    path = archive()
    script.SHA256 = "0" * 64
    with pytest.raises(BundleError, match="checksum"):
        script.extract(path, tmp_path / "series")
    assert not (tmp_path / "series").exists()


def test_missing_slices_leave_nothing(script, archive, tmp_path):
    with pytest.raises(BundleError, match="19 slices"):
        script.extract(archive(slices=19), tmp_path / "series")
    assert not (tmp_path / "series").exists()


def test_no_network_is_one_line(script, tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr="ERROR: No matching distribution\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(BundleError, match="check the network") as caught:
        script.fetch(tmp_path / "series")
    assert caught.value.exit_code == 74
    assert "\n" not in str(caught.value)
