import json
import re
import sys

import pytest

from bundle.commands import doctor as module
from bundle.commands.doctor import Finding, check_disk, check_package, check_requirements, check_weights, doctor
from bundle.errors import BundleError


def test_json_lists_every_topic(capsys):
    doctor(["--json"])
    found = json.loads(capsys.readouterr().out)["findings"]
    assert {"bundle", "packages", "device", "decoders", "weights", "disk"} <= {one["topic"] for one in found}


def test_a_shadowing_package_is_noted(tmp_path, monkeypatch):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "__init__.py").touch()
    before = [one for one in check_package() if one.state == "note"]
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    after = [one for one in check_package() if one.state == "note"]
    assert len(after) == len(before) + 1 and tmp_path.name in after[0].text


@pytest.mark.parametrize("line", ["numpy>=99", "no-such-package>=1"])
def test_a_missing_or_old_package(line, monkeypatch):
    assert all(one.state != "wrong" for one in check_requirements())
    monkeypatch.setattr(module, "_requirement_lines", lambda: [line])
    wrong = [one for one in check_requirements() if one.state == "wrong"]
    assert len(wrong) == 1 and wrong[0].hint


def test_damaged_and_missing_weights(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "README.md").write_text(f"SHA-256 `{'0' * 64}`")
    monkeypatch.setattr(module, "bundle_root", lambda: str(tmp_path))
    assert [one.state for one in check_weights()] == ["wrong"]
    (tmp_path / "models" / "model.pt").write_bytes(b"other")
    assert ["not the file" in one.text for one in check_weights()] == [True]


def test_what_is_found_is_said_in_sentences(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    notes = [one.text for one in check_requirements() if one.state == "note"]
    assert "bm3d is not installed; it is for the BM3D baseline" in notes
    assert [re.sub(r"[0-9]+", "9", one.text) for one in check_disk()] == [
        "9 GB free in this folder",
        "9 GB free in the temporary folder",
    ]


def test_little_room(monkeypatch):
    assert all(one.state in ("ok", "wrong") for one in check_disk())
    monkeypatch.setattr(module, "_LEAST_DISK_GB", 1e9)
    assert all(one.state == "wrong" and one.hint for one in check_disk())


def test_what_is_wrong_ends_with_a_message(monkeypatch, capsys):
    monkeypatch.setattr(module, "CHECKS", (lambda: iter([Finding("disk", "wrong", "full", "free some room")]),))
    with pytest.raises(BundleError, match="not ready: disk"):
        doctor([])
    assert "to do: free some room" in capsys.readouterr().out
    with pytest.raises(BundleError, match="unexpected"):
        doctor(["--jsn"])
