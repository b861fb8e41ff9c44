from dataclasses import replace

import pytest
import torch

from bundle.diffusion.bridge import BrownianBridge
from bundle.diffusion.gaussian import GaussianDiffusion
from bundle.errors import BundleError, ExitCode
from bundle.networks.presets import PRESETS, build_restorer, tile_size
from bundle.networks.restorer import Restorer
from bundle.units import ClinicalWindows, LinearWindow

MILLION = 1e6


def on_meta(preset: str, **arguments) -> Restorer:
    """Shapes and sizes without memory or time."""
    with torch.device("meta"):
        return build_restorer(preset, **arguments)


def parameters(group) -> int:
    return sum(parameter.numel() for parameter in group)


@pytest.fixture(scope="module")
def full() -> Restorer:
    return on_meta("full")


@pytest.fixture(scope="module")
def small() -> Restorer:
    return on_meta("small")


@pytest.mark.parametrize(("group", "millions"), [("vae_encoder", 86), ("vae_decoder", 86), ("unet", 163)])
def test_full_has_the_references_size(full, group, millions):
    assert parameters(full.groups()[group]) / MILLION == pytest.approx(millions, rel=0.1)


def test_full_has_the_references_size_from_core_too(full):
    core = on_meta("full", networks_from="core")
    for name, group in full.groups().items():
        assert parameters(core.groups()[name]) == parameters(group)
    assert core.state_dict().keys() == full.state_dict().keys()


def test_full_has_the_references_shapes(full):
    x = torch.empty(1, 3, 128, 128, 8, device="meta")
    latent = full.autoencoder.encode(x)
    assert latent.shape == (1, 4, 16, 16, 8)
    predicted = full.denoiser(latent, latent, torch.empty(1, device="meta"), None)
    assert predicted.shape == (1, 4, 16, 16, 8)
    assert full.autoencoder.decode(latent).shape == (1, 1, 128, 128, 8)
    assert full.reconstruct(x).shape == (1, 1, 128, 128, 8)


def test_full_uses_clinical_windows_and_ddim(full):
    assert isinstance(full.units, ClinicalWindows)
    assert isinstance(full.process, GaussianDiffusion)
    assert (full.process.sampler, full.process.parameterisation) == ("ddim", "epsilon")


def test_small_has_lossless_shapes(small):
    latent = small.autoencoder.encode(torch.empty(1, 1, 128, 128, 8, device="meta"))
    assert latent.shape == (1, 16, 32, 32, 8)
    assert latent.numel() == 128 * 128 * 8  # as many values as the image: nothing has to be lost
    assert small.autoencoder.decode(latent).shape == (1, 1, 128, 128, 8)


def test_small_uses_the_linear_window_and_the_bridge(small):
    assert isinstance(small.units, LinearWindow)
    assert isinstance(small.process, BrownianBridge)


def test_small_with_a_denoiser_in_half_precision_is_fit_to_ship(small):
    """model.pt at most 24 MB."""
    denoiser = parameters(small.denoiser.parameters())
    others = parameters([*small.parameters(), *small.buffers()]) - denoiser  # shared weights are stored once
    assert 2 * denoiser + 4 * others <= 24 * MILLION


@pytest.mark.parametrize("preset", ["small", "tiny"])
def test_what_small_and_tiny_share(preset):
    chosen = PRESETS[preset]
    assert chosen.latent_channels == chosen.factor**2 == 16
    assert chosen.lossless
    assert chosen.norm_groups is None
    assert chosen.context


def test_tiny_is_tiny():
    assert parameters(on_meta("tiny").parameters()) < 0.5 * MILLION


def test_a_quarter_of_full_has_its_design():
    full, quarter = PRESETS["full"], PRESETS["full_quarter"]
    assert [4 * n for n in quarter.autoencoder_channels] == list(full.autoencoder_channels)
    same = {"autoencoder_channels": full.autoencoder_channels, "denoiser_channels": full.denoiser_channels}
    assert replace(quarter, norm_groups=full.norm_groups, **same) == full


def test_tiles_are_the_presets_or_those_asked_for():
    for preset, chosen in PRESETS.items():
        assert tile_size(preset, "auto") == chosen.tile_size
        assert all(n % on_meta(preset).multiple == 0 for n in chosen.tile_size[:2])
        assert tile_size(preset, [64, 64, 8]) == [64, 64, 8]
    with pytest.raises(BundleError, match="preset 'huge'"):
        tile_size("huge", "auto")


@pytest.mark.parametrize("preset", ["small", "full", "full_quarter", "tiny"])
def test_groups_share_out_all_parameters(preset):
    net = on_meta(preset)
    groups = net.groups()
    assert list(groups) == ["unet", "vae_encoder", "vae_decoder", "refiner"]
    ids = [id(parameter) for group in groups.values() for parameter in group]
    assert sorted(ids) == sorted(id(parameter) for parameter in net.parameters())


@pytest.mark.parametrize("preset", ["small", "full"])
def test_patches_of_the_reference_need_no_padding(preset):
    assert 128 % on_meta(preset).multiple == 0


@pytest.mark.parametrize(
    ("sampler", "kind"),
    [("bridge", BrownianBridge), *((name, GaussianDiffusion) for name in ("ddim", "ddpm", "dpm_solver"))],
)
def test_any_sampler_goes_with_any_preset(sampler, kind):
    for preset in ("tiny", "full"):
        process = on_meta(preset, sampler=sampler).process
        assert isinstance(process, kind)
        assert getattr(process, "sampler", "bridge") == sampler


def test_settings_of_the_process_arrive():
    bridge = on_meta("tiny", noise_scale=0.5, start_fraction=0.9).process
    assert (bridge.noise_scale, bridge.start_fraction) == (0.5, 0.9)
    assert on_meta("tiny", sampler="ddim", parameterisation="v").process.parameterisation == "v"


def test_full_takes_the_linear_window():
    net = on_meta("full", windows="linear")
    assert net.autoencoder.encode(torch.empty(1, 1, 32, 32, 2, device="meta")).shape == (1, 4, 4, 4, 2)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"preset": "large"}, "preset 'large'"),
        ({"preset": "tiny", "windows": "bone"}, "windows 'bone'"),
        ({"preset": "tiny", "sampler": "euler"}, "sampler 'euler'"),
        ({"preset": "tiny", "eta": 0.5}, "eta"),
        ({"preset": "tiny", "start_time": 0.5}, "start_time"),
        ({"preset": "tiny", "sampler": "ddim", "start_time": 0.0}, "start_time"),
        ({"preset": "tiny", "windows": "clinical"}, "windows 'clinical'"),
        ({"preset": "small", "windows": "clinical"}, "windows 'clinical'"),
    ],
)
def test_what_cannot_be_built_is_refused_in_a_line_with_what_can(arguments, named):
    with pytest.raises(BundleError, match=named) as caught:
        build_restorer(**arguments)
    assert caught.value.exit_code == ExitCode.USER
    assert "use " in caught.value.hint
    assert "\n" not in str(caught.value)


def test_an_unknown_package_is_refused():
    with pytest.raises(BundleError, match="networks_from"):
        build_restorer("tiny", networks_from="monai")  # type: ignore[arg-type]
