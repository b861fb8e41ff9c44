import io
import os
import zipfile

import pytest

from bundle.dicom import sources as sources_module
from bundle.dicom.sources import ClampedReader, Sources, is_zip, walk
from bundle.errors import BundleError


def archive(path, **entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in entries.items():
            opened.writestr(name, content)
    return str(path)


def test_walks_files_in_order_and_each_folder_once(tmp_path):
    for name in ("b/2", "b/1", "a/x/3", "top"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "loop").symlink_to(".", target_is_directory=True)
    (tmp_path / "nowhere").symlink_to("missing")
    os.mkfifo(tmp_path / "pipe")
    found = [os.path.relpath(path, tmp_path) for path in walk(tmp_path)]
    assert found == ["top", "a/x/3", "b/1", "b/2"]
    assert list(walk(tmp_path / "top")) == [str(tmp_path / "top")]


def test_a_claimed_length_allocates_no_more_than_the_file_holds(tmp_path):
    (tmp_path / "small").write_bytes(b"abc")
    with ClampedReader(io.FileIO(tmp_path / "small")) as stream:
        assert stream.read(1 << 40) == b"abc" and stream.read(1 << 40) == b""


def test_reads_members(tmp_path):
    path = archive(tmp_path / "a.zip", **{"x/1": b"one", "x/2": b"two"})
    with Sources() as sources:
        members = sources.members(path)
        assert [sources.open(member).read() for member in members] == [b"one", b"two"]
        with sources.open(path) as stream:
            assert is_zip(stream)


@pytest.mark.parametrize("name", ["../out", "/out", "a/../../out", "D:\\out"])
def test_refuses_entries_that_climb_out(tmp_path, name):
    with Sources() as sources, pytest.raises(BundleError, match="out of its folder"):
        sources.members(archive(tmp_path / "a.zip", **{name: b"x"}))


def test_refuses_bombs_and_damage(tmp_path):
    bomb = archive(tmp_path / "a.zip", zeros=bytes(32 << 20))
    (tmp_path / "b.zip").write_bytes(b"PK\x03\x04" + bytes(100))
    with Sources() as sources:
        with pytest.raises(BundleError, match="limit"):
            sources.members(bomb)
        with pytest.raises(BundleError, match="damaged"):
            sources.members(str(tmp_path / "b.zip"))


def test_refuses_too_many_members(tmp_path, monkeypatch):
    monkeypatch.setattr(sources_module, "MAX_MEMBERS", 2)
    with Sources() as sources, pytest.raises(BundleError, match="limit of 2 files"):
        sources.members(archive(tmp_path / "a.zip", a=b"1", b=b"2", c=b"3"))


def test_a_damaged_or_missing_member_is_an_input_error(tmp_path):
    path = archive(tmp_path / "a.zip", one=os.urandom(1000))
    with Sources() as sources, pytest.raises(OSError):
        sources.open(f"{path}!/two")
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[500] ^= 255
    (tmp_path / "a.zip").write_bytes(content)
    with Sources() as sources, pytest.raises(OSError):
        sources.open(f"{path}!/one")


def test_a_directory_that_lists_less_than_it_says_is_damaged(tmp_path):
    path = archive(tmp_path / "a.zip", one=b"1", two=b"2")
    content = bytearray((tmp_path / "a.zip").read_bytes())
    first = content.find(b"PK\x01\x02")
    content[first + 32] = 46 + 3  # its comment swallows the second entry
    (tmp_path / "a.zip").write_bytes(content)
    with Sources() as sources, pytest.raises(BundleError, match="damaged"):
        sources.members(path)
