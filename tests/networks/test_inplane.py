from collections import Counter

import pytest
import torch
from torch import nn

from bundle.networks.compat import build_autoencoder, build_denoiser
from bundle.networks.inplane import (
    DenoiserDownsample,
    EncoderDownsample,
    InPlaneUpsample,
    make_autoencoder_in_plane,
    make_denoiser_in_plane,
)
from bundle.networks.layout import use_slices_first

DOWN = [EncoderDownsample, DenoiserDownsample]
UP = [InPlaneUpsample, lambda channels: InPlaneUpsample(channels, transposed=True)]
PACKAGES = ["generative", "core"]


def autoencoder(networks_from: str) -> nn.Module:
    return build_autoencoder(
        networks_from,
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        num_res_blocks=(1, 1, 1),
        num_channels=(4, 4, 8),
        attention_levels=(False, False, False),
        latent_channels=2,
        norm_num_groups=2,
        with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
    )


def denoiser(networks_from: str) -> nn.Module:
    return build_denoiser(
        networks_from,
        spatial_dims=3,
        in_channels=4,
        out_channels=2,
        num_res_blocks=1,
        num_channels=(4, 4, 8),
        attention_levels=(False, False, False),
        norm_num_groups=2,
        num_head_channels=8,
    )


def kinds(net: nn.Module) -> Counter:
    return Counter(type(module).__name__ for module in net.modules())


def changed(module, x: torch.Tensor, voxel: tuple[int, int, int]) -> torch.Tensor:
    """Positions (n, 3) of the output that a change of one voxel of x reaches."""
    other = x.clone()
    other[(slice(None), slice(None), *voxel)] += 1
    with torch.no_grad():
        return ((module(x) - module(other)).abs().sum(dim=(0, 1)) > 1e-7).nonzero()


@pytest.mark.parametrize("make", DOWN)
def test_downsampling_halves_rows_and_columns_and_keeps_slices(make):
    assert make(2)(torch.rand(1, 2, 8, 12, 5)).shape == (1, 2, 4, 6, 5)
    assert make(2)(torch.rand(1, 2, 8, 12, 1)).shape == (1, 2, 4, 6, 1)


@pytest.mark.parametrize("make", UP)
def test_upsampling_doubles_rows_and_columns_and_keeps_slices(make):
    assert make(2)(torch.rand(1, 2, 4, 6, 5)).shape == (1, 2, 8, 12, 5)
    assert make(2)(torch.rand(1, 2, 4, 6, 1)).shape == (1, 2, 8, 12, 1)


@pytest.mark.parametrize("make", DOWN)
def test_downsampling_reaches_the_same_place_and_the_next_slices_only(make):
    row, column, slice_ = 6, 10, 4
    reached = changed(make(2), torch.rand(1, 2, 12, 20, 9), (row, column, slice_))
    assert len(reached) > 0
    assert set(reached[:, 2].tolist()) == {slice_ - 1, slice_, slice_ + 1}
    assert (reached[:, 0] - row // 2).abs().max() <= 1
    assert (reached[:, 1] - column // 2).abs().max() <= 1


@pytest.mark.parametrize("make", UP)
def test_upsampling_reaches_the_same_place_and_the_next_slices_only(make):
    row, column, slice_ = 3, 7, 4
    reached = changed(make(2), torch.rand(1, 2, 6, 10, 9), (row, column, slice_))
    assert len(reached) > 0
    assert set(reached[:, 2].tolist()) == {slice_ - 1, slice_, slice_ + 1}
    assert (reached[:, 0] - 2 * row).abs().max() <= 2
    assert (reached[:, 1] - 2 * column).abs().max() <= 2


def test_slices_are_mixed_by_convolution_weights_alone():
    """With weights in the middle slice only, what happens in a slice depends on that slice alone."""
    for make in (*DOWN, *UP):
        module = make(2)
        for parameter in module.parameters():
            if parameter.ndim == 5:
                parameter.data[..., [0, 2]] = 0
        reached = changed(module, torch.rand(1, 2, 8, 12, 5), (4, 6, 2))
        assert set(reached[:, 2].tolist()) == {2}


@pytest.mark.parametrize("networks_from", PACKAGES)
@pytest.mark.parametrize("transposed", [False, True])
def test_all_resampling_modules_of_an_autoencoder_are_exchanged(networks_from, transposed):
    before = autoencoder(networks_from)
    names = {name: weight.shape for name, weight in before.state_dict().items()}
    net = make_autoencoder_in_plane(before, transposed=transposed)
    assert net is before
    found = kinds(net)
    assert (found["EncoderDownsample"], found["InPlaneUpsample"]) == (2, 2)
    for old in ("Downsample", "AEKLDownsample", "Upsample", "UpSample"):
        assert found[old] == 0
    if networks_from == "generative":  # core's upsampling has a name of its own, which the exchange makes the same
        assert {name: weight.shape for name, weight in net.state_dict().items()} == names


@pytest.mark.parametrize("networks_from", PACKAGES)
def test_all_resampling_modules_of_a_denoiser_are_exchanged(networks_from):
    before = denoiser(networks_from)
    count = sum(weight.numel() for weight in before.parameters())
    net = make_denoiser_in_plane(before)
    assert net is before
    found = kinds(net)
    assert (found["DenoiserDownsample"], found["InPlaneUpsample"]) == (2, 2)
    for old in ("Downsample", "DiffusionUnetDownsample", "Upsample", "UpSample", "WrappedUpsample"):
        assert found[old] == 0
    assert sum(weight.numel() for weight in net.parameters()) == count


@pytest.mark.parametrize("networks_from", PACKAGES)
def test_a_network_keeps_the_order_of_the_axes(networks_from):
    x = torch.rand(1, 1, 8, 12, 3)
    net = make_autoencoder_in_plane(autoencoder(networks_from)).eval()
    with torch.no_grad():
        latent = net.encode(x)[0]
        assert latent.shape == (1, 2, 2, 3, 3)
        assert net.decode(latent).shape == x.shape
        z = torch.rand(1, 4, 8, 12, 3)
        assert make_denoiser_in_plane(denoiser(networks_from)).eval()(z, timesteps=torch.tensor([1.0])).shape == (
            1,
            2,
            8,
            12,
            3,
        )


@pytest.mark.parametrize("make", [make_autoencoder_in_plane, make_denoiser_in_plane])
def test_a_network_without_known_modules_is_refused(make):
    with pytest.raises(RuntimeError, match="no resampling module"):
        make(nn.Sequential(nn.Conv3d(1, 1, 3, stride=2), nn.MaxPool3d(2)))


@pytest.mark.parametrize("shape", [(1, 5, 3, 6, 8), (2, 5, 1, 4, 4)])
def test_doubling_and_convolving_in_one_operation_is_the_same(shape):
    up = use_slices_first(InPlaneUpsample(5))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=torch.channels_last_3d)
    recorded = up(x)
    with torch.inference_mode():
        torch.testing.assert_close(up(x), recorded.detach(), atol=1e-5, rtol=1e-5)
