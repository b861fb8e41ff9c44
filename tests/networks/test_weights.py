import pickle
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from bundle.errors import BundleError, ExitCode
from bundle.files import file_digest
from bundle.networks.presets import build_restorer
from bundle.networks.weights import load_starting_weights, load_weights, save_weights


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


# ---- starting weights -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(3)
    restorer = build_restorer("tiny")
    with torch.no_grad():
        for parameter in restorer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return restorer


def start_from(content, tmp_path):
    torch.save(content, tmp_path / "start.pt")
    restorer = build_restorer("tiny")
    return restorer, load_starting_weights(restorer, tmp_path / "start.pt")


def test_all_of_ours_is_loaded(source, tmp_path):
    save_weights(source, tmp_path / "model.pt")
    restorer = build_restorer("tiny")
    report = load_starting_weights(restorer, tmp_path / "model.pt")
    assert same(restorer, source) and report.left == report.unused == () and report.digest
    assert "0 keep their start" in report.summary and report.layout == "this bundle's"


@pytest.mark.parametrize("part,prefix", [("autoencoder", "autoencoder.net."), ("denoiser", "denoiser.net.")])
@pytest.mark.parametrize("layout", ["generative", "core", "wrapped"])
def test_one_network_in_the_layout_of_monai_generative_or_core(source, tmp_path, part, prefix, layout):
    """Attention is not in the tiny networks; test_compat shows the renaming with it."""
    state = dict(getattr(source, part).net.state_dict())
    if layout == "core":
        state = {re.sub(r"(decoder\.blocks\.\d+)\.conv\.conv\.", r"\1.postconv.conv.", k): v for k, v in state.items()}
    if layout == "wrapped":
        state = {"state_dict": {f"module.{name}": value for name, value in state.items()}}
    restorer, report = start_from(state, tmp_path)
    assert same(getattr(restorer, part).net, getattr(source, part).net)
    assert all(name.startswith(prefix) for name in report.loaded) and report.unused == ()
    assert {name for name in report.left if name.startswith(prefix)} == set()


def test_what_does_not_fit_is_told(source, tmp_path):
    state = dict(source.state_dict())
    name = next(iter(state))
    state[name] = torch.zeros(3, 3)
    state["another.weight"] = torch.zeros(1)
    _, report = start_from(state, tmp_path)
    assert list(report.reshaped) == [name] and report.left == (name,) and report.unused == ("another.weight",)
    assert report.as_dict()["other_shape"][name][0] == [3, 3]


@pytest.mark.parametrize(
    "content,message",
    [
        ({"a.weight": torch.zeros(1)}, "none of its 1 tensors has a place"),
        ([1], "does not fit the network"),
        (
            {"conv_in.conv.weight": torch.zeros(1), "down_blocks.0.attn.out_proj.weight": torch.zeros(1)},
            "attention projections that this one does not have",
        ),
    ],
)
def test_what_fits_nowhere_or_computes_otherwise_is_refused(content, message, tmp_path):
    with pytest.raises(BundleError, match=message):
        start_from(content, tmp_path)
