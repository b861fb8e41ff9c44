import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from bundle.errors import BundleError, ExitCode
from bundle.files import file_digest
from bundle.networks.weights import load_weights


def network(seed: int = 0, width: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, width), nn.Linear(width, 1))


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def refused(path: Path, net: nn.Module) -> BundleError:
    with pytest.raises(BundleError) as caught:
        load_weights(net, path)
    assert caught.value.exit_code == ExitCode.USER
    assert path.name in str(caught.value)
    assert path.parent.name not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("kind", [str, Path])
def test_weights_come_back_with_their_digest(tmp_path, kind):
    path, saved, loaded = tmp_path / "model.pt", network(0), network(1)
    torch.save(saved.state_dict(), path)
    assert not same(saved, loaded)
    assert load_weights(loaded, kind(path)) == file_digest(path)
    assert same(saved, loaded)


def test_of_a_checkpoint_the_averaged_weights_are_taken(tmp_path):
    path, average, loaded = tmp_path / "checkpoint_final.pt", network(1), network(2)
    torch.save({"step": network(0).state_dict(), "ema": average.state_dict(), "iteration": 3}, path)
    load_weights(loaded, path)
    assert same(average, loaded)


def test_a_missing_file_is_named_without_its_folder(tmp_path):
    assert "does not exist" in str(refused(tmp_path / "model.pt", network()))


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "model.pt").mkdir()
    refused(tmp_path / "model.pt", network())


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 cut short"])
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / "model.pt").write_bytes(content)
    assert "cannot be read" in str(refused(tmp_path / "model.pt", network()))


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(network().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-100])
    assert "cannot be read" in str(refused(path, network()))


class Harmful:
    def __reduce__(self):
        return (open, ("harm", "w"))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, monkeypatch, save):
    monkeypatch.chdir(tmp_path)
    save({"weights": Harmful()}, tmp_path / "model.pt")
    refused(tmp_path / "model.pt", network())
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    "content",
    [
        network(width=4).state_dict(),
        {},
        {**network().state_dict(), "more": torch.zeros(1)},
        {"0.weight": torch.zeros(3, 2)},
        [1, 2],
        torch.zeros(3),
    ],
    ids=["other shapes", "empty", "more", "less", "a list", "a tensor"],
)
def test_weights_of_another_network_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "model.pt")
    assert "does not fit" in str(refused(tmp_path / "model.pt", network()))
