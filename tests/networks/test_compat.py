"""Both packages hold the same functions: the same weights give the same outputs, in either direction."""

import ast
import importlib
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from bundle.networks import compat, presets
from bundle.networks.compat import (
    build_autoencoder,
    build_denoiser,
    keep_generative_layout,
    to_core_keys,
    to_generative_keys,
)
from bundle.networks.inplane import make_autoencoder_in_plane, make_denoiser_in_plane
from bundle.networks.presets import build_restorer

BOTH_WAYS = [("generative", "core"), ("core", "generative")]
LIMIT = 1e-5
PACKAGE = Path(compat.__file__).parents[1]

# As preset `full`, with group norms and attention, in few channels.
AUTOENCODER = {
    "spatial_dims": 3,
    "in_channels": 3,
    "out_channels": 1,
    "num_res_blocks": (1, 1),
    "num_channels": (8, 16),
    "attention_levels": (False, True),
    "latent_channels": 3,
    "norm_num_groups": 4,
    "with_encoder_nonlocal_attn": True,
    "with_decoder_nonlocal_attn": True,
}
DENOISER = {
    "spatial_dims": 3,
    "in_channels": 6,
    "out_channels": 3,
    "num_res_blocks": 2,
    "num_channels": (8, 16),
    "attention_levels": (False, True),
    "norm_num_groups": 4,
    "num_head_channels": 8,
}
FULL_LIKE = replace(
    presets.PRESETS["full"],
    autoencoder_channels=(8, 8, 16, 16),
    autoencoder_res_blocks=(1, 1, 1, 1),
    denoiser_channels=(16, 64, 64),
    denoiser_res_blocks=1,
    norm_groups=8,
    refiner_features=(4, 8, 8),
)


def autoencoder(networks_from: str) -> nn.Module:
    net = make_autoencoder_in_plane(build_autoencoder(networks_from, **AUTOENCODER))
    return keep_generative_layout(net, networks_from).eval()


def denoiser(networks_from: str) -> nn.Module:
    net = make_denoiser_in_plane(build_denoiser(networks_from, **DENOISER))
    return keep_generative_layout(net, networks_from).eval()


def with_attention_of_old_weights(state: dict) -> dict:
    """Adds the projections that monai-generative saves and never uses."""
    extra = {}
    for key in state:
        if found := re.fullmatch(r"(.*\.)to_q\.weight", key):
            extra[found[1] + "proj_attn.weight"] = torch.randn_like(state[key])
            extra[found[1] + "proj_attn.bias"] = torch.randn(state[key].shape[0])
    assert extra
    return {**state, **extra}


def difference(first: torch.Tensor, second: torch.Tensor) -> float:
    assert first.std() > 1e-3  # a constant would prove nothing
    return float((first - second).abs().max())


X = torch.randn(2, 3, 8, 12, 3, generator=torch.Generator().manual_seed(0))
Z = torch.randn(2, 6, 8, 12, 3, generator=torch.Generator().manual_seed(1))


def test_every_name_used_of_monai_generative_imports():
    compat._generative_nets()  # puts the name that moved in its place
    used = set()
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "generative":
                assert path.name == "compat.py", f"{path.name} imports generative past compat"
                used |= {(node.module, alias.name) for alias in node.names}
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Call):
                if getattr(node.value.func, "id", "") == "_generative_nets":
                    used.add(("generative.networks.nets", node.attr))
    assert ("generative.networks.nets", "AutoencoderKL") in used
    assert ("generative.networks.nets", "DiffusionModelUNet") in used
    for module, name in used:
        assert hasattr(importlib.import_module(module), name)


def test_what_monai_generative_misses_is_put_in_place():
    compat._generative_nets()
    assert hasattr(importlib.import_module("generative.networks.schedulers"), "DDPMScheduler")


@pytest.mark.parametrize("build", [autoencoder, denoiser])
def test_networks_are_of_the_package_asked_for(build):
    assert type(build("generative")).__module__.startswith("generative.")
    assert type(build("core")).__module__.startswith("monai.")


@pytest.mark.parametrize(("build", "arguments"), [(build_autoencoder, AUTOENCODER), (build_denoiser, DENOISER)])
def test_an_unknown_package_is_refused(build, arguments):
    with pytest.raises(ValueError, match="networks_from must be 'generative' or 'core', not 'monai'"):
        build("monai", **arguments)


def test_core_takes_monai_generatives_argument_names():
    net = build_denoiser("core", **DENOISER)
    assert net.block_out_channels == [8, 16] or tuple(net.block_out_channels) == (8, 16)


@pytest.mark.parametrize("build", [autoencoder, denoiser])
def test_both_packages_save_the_same_layout(build):
    ours, theirs = (build(package).state_dict() for package in ("generative", "core"))
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    assert any(".to_q." in key for key in ours)
    assert not any("proj_attn" in key or ".attn." in key for key in ours)


@pytest.mark.parametrize(("source", "target"), BOTH_WAYS)
def test_an_autoencoder_gives_the_same_from_the_same_weights(randomise, source, target):
    first, second = randomise(autoencoder(source), scale=0.05), autoencoder(target)
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        (mean, sigma), (other_mean, other_sigma) = first.encode(X), second.encode(X)
        assert difference(mean, other_mean) < LIMIT
        assert difference(sigma, other_sigma) < LIMIT
        assert difference(first.decode(mean), second.decode(mean)) < LIMIT


@pytest.mark.parametrize(("source", "target"), BOTH_WAYS)
def test_a_denoiser_gives_the_same_from_the_same_weights(randomise, source, target):
    first, second = randomise(denoiser(source), scale=0.05), denoiser(target)
    second.load_state_dict(first.state_dict())
    t = torch.tensor([3.0, 700.0])
    with torch.no_grad():
        assert difference(first(Z, timesteps=t), second(Z, timesteps=t)) < LIMIT


def restored(preset: str, source: str, target: str, randomise) -> tuple[torch.Tensor, torch.Tensor]:
    first = randomise(build_restorer(preset, networks_from=source), scale=0.01)
    second = build_restorer(preset, networks_from=target).eval()
    assert list(first.state_dict()) == list(second.state_dict())
    second.load_state_dict(first.state_dict())
    generator = torch.Generator().manual_seed(2)
    hu = torch.rand(1, 1, 32, 48, 2, generator=generator) * 400 - 100
    x, level = first.units.from_hu(hu), torch.full((1, 2), 20.0)
    with torch.no_grad():
        outputs = [net(x, torch.tensor([[0.7, 0.7, 3.0]]), level) for net in (first, second)]
    assert (outputs[0] - first.linear.from_hu(hu)).abs().max() > 1e-3  # the weights do something
    return outputs[0], outputs[1]


@pytest.mark.parametrize(("source", "target"), BOTH_WAYS)
def test_a_tiny_restorer_gives_the_same_from_the_same_weights(randomise, source, target):
    assert difference(*restored("tiny", source, target, randomise)) < LIMIT


@pytest.mark.parametrize(("source", "target"), BOTH_WAYS)
def test_a_restorer_like_full_gives_the_same_from_the_same_weights(randomise, monkeypatch, source, target):
    monkeypatch.setitem(presets.PRESETS, "full-like", FULL_LIKE)
    assert difference(*restored("full-like", source, target, randomise)) < LIMIT


@pytest.mark.parametrize("package", ["generative", "core"])
@pytest.mark.parametrize("build", [autoencoder, denoiser])
def test_projections_of_old_weights_are_dropped(randomise, build, package):
    saved = randomise(build("generative")).state_dict()
    old = with_attention_of_old_weights(saved)
    count = len(old)
    net = build(package)
    net.load_state_dict(old)
    assert len(old) == count  # the caller's dictionary is left as it was
    for key, value in net.state_dict().items():
        assert torch.equal(value, saved[key])


@pytest.mark.parametrize("package", ["generative", "core"])
def test_weights_of_an_unmodified_network_of_monai_generative_load_as_a_child(package):
    """Its own class, with its dead projections, as an old file would hold it, below a prefix."""
    old = compat._generative_nets().DiffusionModelUNet(**DENOISER).state_dict()
    assert any(".proj_attn." in key for key in old)
    parent = nn.ModuleDict({"net": denoiser(package)})
    parent.load_state_dict({f"net.{key}": value for key, value in old.items()})
    for key, value in parent.state_dict().items():
        assert torch.equal(value, old[key.removeprefix("net.")])


@pytest.mark.parametrize("package", ["generative", "core"])
def test_wrong_weights_are_still_refused(package):
    net = denoiser(package)
    state = net.state_dict()
    with pytest.raises(RuntimeError, match="Unexpected"):
        net.load_state_dict({**state, "more.weight": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="Missing"):
        net.load_state_dict({key: value for key, value in state.items() if "to_q" not in key})


@pytest.mark.parametrize("build", [autoencoder, denoiser])
def test_keys_go_there_and_back(build):
    saved = build("generative").state_dict()
    core = to_core_keys(saved)
    assert core.keys() != saved.keys()
    assert to_generative_keys(core).keys() == saved.keys()
    assert to_core_keys(core).keys() == core.keys()
    assert to_generative_keys(saved).keys() == saved.keys()


@pytest.mark.parametrize("package", ["generative", "core"])
def test_no_parameter_is_left_without_gradient(randomise, package):
    """DDP stops at parameters that are never used."""
    for net, loss in (
        (randomise(autoencoder(package)), lambda net: net.decode(net.encode(X)[0]).sum() + net.encode(X)[1].sum()),
        (randomise(denoiser(package)), lambda net: net(Z, timesteps=torch.tensor([1.0, 2.0])).square().sum()),
    ):
        loss(net).backward()
        assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []
