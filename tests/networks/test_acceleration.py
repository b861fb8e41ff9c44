"""Ways to run the networks: they compute the same, and what is missing is said, not fatal."""

import shutil

import pytest
import torch
from shaken_networks import shaken

from bundle.errors import BundleError
from bundle.networks import acceleration
from bundle.networks.acceleration import accelerated, format_weights, named_backend, usable_backend
from bundle.networks.presets import build_restorer

STEPS = 2


@pytest.fixture(scope="module")
def restorer():
    return shaken()


def restorations(network, *, height=16, depth=3):
    """One step and samples of a seeded input (1, C, height, 16, depth), HU."""
    seeded = torch.Generator().manual_seed(1)
    x = torch.rand(1, network.units.channels, height, 16, depth, generator=seeded) * 2 - 1
    noise = torch.randn(network.latent_shape(x), generator=seeded)
    level = torch.full((1, depth), 20.0)
    with torch.inference_mode():
        one = network(x, None, level)
        drawn = network.sample(x, steps=STEPS, noise=lambda _: noise, noise_level=level)
    return torch.stack([one, drawn]) * network.linear.hu_per_unit


@pytest.fixture
def calls(monkeypatch):
    """What torch.compile was asked for; it compiles nothing, so that a test takes no minutes."""
    asked = []

    def compiled(function, **settings):
        asked.append(settings)
        return lambda *inputs: asked.append(function.__name__) or function(*inputs)

    monkeypatch.setattr(torch, "compile", compiled)
    return asked


@pytest.mark.full
def test_compiled_networks_compute_the_same_at_any_shape(restorer):
    engine = accelerated(restorer, backend="eager")
    for height, depth in ((16, 3), (32, 2), (48, 1)):
        expected, found = (restorations(one, height=height, depth=depth) for one in (restorer, engine))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)  # float32, two paths of convolution
    assert engine.state_dict().keys() == restorer.state_dict().keys() and engine.multiple == restorer.multiple


@pytest.mark.full
def test_norms_and_attention_of_slices_compile():
    network = shaken(preset="full_quarter")
    expected, found = (restorations(one, height=32) for one in (network, accelerated(network, backend="eager")))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0.1)  # of hundreds of HU


@pytest.mark.full
def test_a_compiled_change_of_basis_ends_when_weights_are_loaded(restorer):
    network = shaken(("denoiser", "refiner"))  # its autoencoder is a change of basis
    engine = accelerated(network, backend="eager")
    assert engine.autoencoder._found["lossless"]
    torch.testing.assert_close(restorations(engine), restorations(network), rtol=1e-5, atol=1e-3)
    network.load_state_dict(restorer.state_dict())
    torch.testing.assert_close(restorations(engine), restorations(restorer), rtol=1e-5, atol=1e-3)


@pytest.mark.full
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler here")
def test_a_real_compiler_changes_less_than_a_stored_unit(restorer):
    assert usable_backend(True, "cpu") == "inductor"
    found = restorations(accelerated(restorer, backend="inductor"))
    torch.testing.assert_close(found, restorations(restorer), rtol=0, atol=0.1)


@pytest.mark.full
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler here")
def test_compiled_in_bfloat16_it_is_as_near_to_float32_as_uncompiled(restorer):
    exact = restorations(restorer)
    with torch.autocast("cpu", torch.bfloat16):
        plain, compiled = (
            (restorations(network).float() - exact).square().mean().sqrt()
            for network in (restorer, accelerated(restorer, backend="inductor"))
        )
    assert 0 < compiled < 1.5 * plain, (compiled, plain)  # its kernels round at other places, or not at all


def test_all_four_networks_are_compiled_and_the_original_is_not(restorer, calls):
    engine = accelerated(restorer, backend="inductor")
    assert len(calls) == 4 and all(settings == {"backend": "inductor"} for settings in calls)
    calls.clear()
    restorations(restorer)
    assert calls == []
    restorations(engine)
    assert calls[:4] == ["encode", "forward", "decode_difference", "forward"]


def test_on_a_gpu_graphs_are_recorded_and_their_memory_is_not_handed_out(restorer, calls):
    accelerated(restorer, backend="inductor", device="cuda")
    assert all(settings == {"backend": "inductor", "mode": "reduce-overhead"} for settings in calls)
    memory = torch.zeros(3)
    graph = acceleration._compiled(lambda x: memory.copy_(x), "inductor", graphs=True)
    first = graph(torch.ones(3))
    graph(torch.full((3,), 2.0))
    assert torch.equal(first, torch.ones(3))


def test_a_missing_compiler_is_a_warning_and_no_more(monkeypatch, caplog):
    def missing(*_, **__):
        raise RuntimeError("no C++ compiler found\nand a long story")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: missing)
    assert usable_backend(True, "cpu") is None
    (record,) = caplog.records
    assert "compile: inductor cannot be used here and is left out: no C++ compiler found" in record.getMessage()
    assert usable_backend(False, "cpu") is None and usable_backend("eager", "cpu") is None


def test_switches_are_true_or_false_or_a_backend():
    assert named_backend("false") is None and named_backend(True) == "inductor" and named_backend("eager") == "eager"
    with pytest.raises(BundleError, match="compile 'indcutor' is unknown"):
        named_backend("indcutor")


def test_the_memory_format_changes_no_value():
    network = build_restorer("tiny")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert accelerated(network) is network
    assert any(not p.is_contiguous() for p in network.parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    format_weights(network, torch.contiguous_format)
    assert all(p.is_contiguous() for p in network.parameters())
