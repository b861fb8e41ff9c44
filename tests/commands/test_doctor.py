import importlib.util
import json
import re
import sys

import pytest
import torch

from bundle.commands import doctor as module
from bundle.commands.doctor import (
    Finding,
    check_decoders,
    check_device,
    check_disk,
    check_package,
    check_requirements,
    check_weights,
    doctor,
)
from bundle.errors import BundleError
from bundle.networks import precision


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


@pytest.fixture
def machine(monkeypatch):
    """Make torch find such a GPU and such a processor: (compute capability or None, CPU's capabilities)."""

    def make(capability, **cpu):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Card")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_70", "sm_80", "sm_90"])
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu, raising=False)
        return [(one.state, one.text) for one in check_device() if one.topic == "device"]

    return make


@pytest.mark.parametrize(
    ("capability", "cpu", "formats"),
    [
        (
            (9, 0),
            {},
            ["cuda: Card, mixed_precision auto is bfloat16", "cpu: 1 thread, mixed_precision auto is float32"],
        ),
        (
            (7, 0),
            {},
            ["cuda: Card, mixed_precision auto is float16", "cpu: 1 thread, mixed_precision auto is float32"],
        ),
        (None, {"avx512_bf16": True}, ["cpu: 1 thread, mixed_precision auto is bfloat16"]),
        (None, {"avx512_bf16": False, "avx2": True}, ["cpu: 1 thread, mixed_precision auto is float32"]),
    ],
    ids=["H100", "V100", "CPU with bfloat16", "CPU without"],
)
def test_number_formats(machine, capability, cpu, formats):
    assert [text for state, text in machine(capability, **cpu) if state == "ok"] == formats


@pytest.mark.parametrize(
    ("built_for", "text", "hint"),
    [
        ("12.6", "no CUDA device found", "check the driver with nvidia-smi"),
        (None, "no CUDA device: this PyTorch is a CPU build", ""),
    ],
)
def test_no_gpu(machine, monkeypatch, built_for, text, hint):
    monkeypatch.setattr(torch.version, "cuda", built_for)
    assert machine((9, 0))[-1][0] == "ok", "a GPU is there: nothing to note"
    assert ("note", text) in machine(None)
    assert [one.hint for one in check_device() if one.state == "note" and one.topic == "device"] == [hint]


def test_a_gpu_that_this_torch_has_no_code_for_is_a_finding_and_the_processor_still_told(machine, monkeypatch):
    real = precision.resolve_precision

    def resolve(mode, device):
        if str(device) == "cuda":
            raise BundleError("this PyTorch has no code for the GPU 'Card'", hint="install a build for it")
        return real(mode, device)

    monkeypatch.setattr(precision, "resolve_precision", resolve)
    found = machine((3, 5), avx512_bf16=True)
    assert found[0] == ("wrong", "cuda: this PyTorch has no code for the GPU 'Card'")
    assert found[1][0] == "ok" and found[1][1].startswith("cpu: ")


@pytest.mark.parametrize(
    ("total", "found"), [(64e9, [("ok", "64.0 GB")]), (3.2e9, [("note", "3.2 GB")]), (None, [])], ids=str
)
def test_memory(monkeypatch, total, found):
    monkeypatch.setattr(module, "_memory_bytes", lambda: total)
    memory = [one for one in check_device() if one.topic == "memory"]
    assert [(one.state, one.text) for one in memory] == found
    assert all(("--tile_size" in one.hint) == (one.state == "note") for one in memory)


@pytest.mark.parametrize(
    ("packages", "named"),
    [
        (["gdcm"], "JPEG"),
        (["_CharLS"], "JPEG-LS"),
        (["openjpeg"], "JPEG 2000"),
        (["rle"], "RLE"),
        (["gdcm", "rle"], "JPEG, RLE"),
    ],
    ids=str,
)
def test_a_missing_decoder_is_named(monkeypatch, packages, named):
    assert [(one.state, one.text) for one in check_decoders()] == [("ok", "every supported transfer syntax")]
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in packages else find(name))
    (found,) = check_decoders()
    assert (found.state, found.text) == ("wrong", f"no decoder for {named}") and found.hint


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
