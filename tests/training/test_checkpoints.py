import os
import shutil
from fractions import Fraction

import pytest
import torch

from bundle.errors import BundleError
from bundle.training.checkpoints import load_checkpoint, newest_checkpoint, prune_checkpoints, save_checkpoint


def save(folder, name, value=0, *, age=None):
    path = folder / f"checkpoint_{name}.pt"
    save_checkpoint({"value": torch.tensor(value), "trainer": {"iteration": value}, "name": name}, path)
    if age is not None:
        os.utime(path, ns=(0, 10**18 - age * 10**9))
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_round_trip(tmp_path):
    path = save(tmp_path, "step_5", 5)
    loaded = load_checkpoint(path)
    assert int(loaded["value"]) == 5 and loaded["trainer"] == {"iteration": 5} and loaded["name"] == "step_5"
    assert names(tmp_path) == ["checkpoint_step_5.pt", "checkpoint_step_5.pt.sha256"]
    assert (tmp_path / "checkpoint_step_5.pt.sha256").read_text().split()[1] == "checkpoint_step_5.pt"


def test_more_than_tensors_and_plain_types_is_not_loaded(tmp_path):
    path = tmp_path / "checkpoint_step_1.pt"
    save_checkpoint({"value": Fraction(1, 3)}, path)
    with pytest.raises(BundleError, match="cannot be read"):
        load_checkpoint(path)


@pytest.mark.parametrize("moment", ["writing", "checksum"])
def test_a_save_that_is_cut_off_leaves_the_one_before(tmp_path, monkeypatch, moment):
    before = save(tmp_path, "step_1", 1, age=10)
    target = "torch.save" if moment == "writing" else "bundle.training.checkpoints.file_digest"

    def cut_off(*arguments, **_):
        if moment == "writing":
            arguments[1].write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(target, cut_off)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, "step_2", 2)
    assert newest_checkpoint(tmp_path) == before
    assert int(load_checkpoint(before)["value"]) == 1
    assert not list(tmp_path.glob("*.damaged"))


def test_a_full_disk_leaves_the_file_before_of_the_same_name_readable(tmp_path, monkeypatch):
    path = save(tmp_path, "best", 1)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("torch.save", full)
        with pytest.raises(OSError, match="No space"):
            save(tmp_path, "best", 2)
    assert int(load_checkpoint(path)["value"]) == 1
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_one_is_set_aside_and_the_one_before_used(tmp_path, damage):
    before, last = save(tmp_path, "epoch_0", 1, age=20), save(tmp_path, "step_9", 9, age=10)
    content = bytearray(last.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    last.write_bytes({"flip": bytes(content), "cut": bytes(content[:-40]), "empty": b""}[damage])
    with pytest.raises(BundleError, match=r"'checkpoint_step_9\.pt' is damaged: its checksum differs"):
        load_checkpoint(last)
    assert newest_checkpoint(tmp_path) == before
    assert names(tmp_path) == ["checkpoint_epoch_0.pt", "checkpoint_epoch_0.pt.sha256", "checkpoint_step_9.damaged"]
    assert newest_checkpoint(tmp_path) == before


def test_missing_named_file(tmp_path):
    with pytest.raises(BundleError, match=r"checkpoint 'checkpoint_step_3\.pt' does not exist \(check --resume"):
        load_checkpoint(tmp_path / "checkpoint_step_3.pt")


def test_a_named_file_without_checksum_is_read(tmp_path):
    path = save(tmp_path, "step_5", 5)
    moved = tmp_path / "elsewhere.pt"
    shutil.copy(path, moved)
    assert int(load_checkpoint(moved)["value"]) == 5


def test_no_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "missing") is None


def test_newest_is_by_step_or_epoch_never_best_or_final(tmp_path):
    save(tmp_path, "step_500", 500, age=30)
    newest = save(tmp_path, "epoch_1", 600, age=20)
    save(tmp_path, "best", 400, age=10)
    save(tmp_path, "final", 700, age=5)
    assert newest_checkpoint(tmp_path) == newest


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_prune_keeps_the_newest_of_each_kind(tmp_path, keep):
    for number in range(4):
        save(tmp_path, f"step_{10 * number}", age=40 - number)
        save(tmp_path, f"epoch_{number}", age=40 - number)
    save(tmp_path, "best", age=99)
    save(tmp_path, "final", age=99)
    prune_checkpoints(tmp_path, keep=keep)
    kept = {path.stem.removeprefix("checkpoint_") for path in tmp_path.glob("*.pt")}
    last = range(4 - keep, 4)
    assert kept == {"best", "final", *(f"step_{10 * n}" for n in last), *(f"epoch_{n}" for n in last)}
    assert {path.name for path in tmp_path.glob("*.sha256")} == {f"checkpoint_{name}.pt.sha256" for name in kept}


def test_prune_keeps_what_a_run_that_went_back_writes(tmp_path):
    """Numbers of a run begun anew in the same folder are lower than those of the run before."""
    for number in range(7, 10):
        save(tmp_path, f"step_{100 * number}", age=50 - number)
    mine = save(tmp_path, "step_100", age=1)
    prune_checkpoints(tmp_path, keep=3)
    assert newest_checkpoint(tmp_path) == mine
    assert len(list(tmp_path.glob("*.pt"))) == 3


def test_prune_clears_what_killed_saves_left(tmp_path):
    (tmp_path / ".checkpoint_step_3.pt.123.part").write_bytes(b"half")
    path = save(tmp_path, "step_4")
    prune_checkpoints(tmp_path, keep=3)
    assert names(tmp_path) == [path.name, f"{path.name}.sha256"]
