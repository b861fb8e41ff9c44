"""Attention within slices is each package's own attention on one slice, whatever lies beside it."""

import pytest
import torch
from torch import nn

from bundle.networks.attention import SliceAttention, use_slice_attention
from bundle.networks.compat import _generative_nets
from bundle.networks.norm import SliceGroupNorm, use_slice_norms
from bundle.networks.presets import build_restorer

X = torch.randn(2, 16, 3, 5, 4, generator=torch.Generator().manual_seed(0))  # B, C, D, H, W


def generative(heads: int) -> nn.Module:
    _generative_nets()
    from generative.networks.nets.diffusion_model_unet import AttentionBlock

    block = AttentionBlock(3, 16, num_head_channels=16 // heads, norm_num_groups=4)
    del block.proj_attn  # never used
    return block


def core(heads: int) -> nn.Module:
    from monai.networks.blocks import SpatialAttentionBlock

    return SpatialAttentionBlock(3, 16, num_head_channels=16 // heads, norm_num_groups=4, include_fc=False)


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("make", [generative, core])
@torch.no_grad()
def test_a_slice_attends_as_the_package_does_where_it_is_alone(make, heads, randomise):
    block = randomise(make(heads), scale=1.0)
    between = block(X)
    alone = torch.cat([block(X[:, :, k : k + 1]) for k in range(3)], dim=2)
    weights = {name: weight.clone() for name, weight in block.state_dict().items()}
    within = use_slice_norms(SliceAttention(block))
    within.load_state_dict(weights)  # the same names, none more
    torch.testing.assert_close(within(X), alone, atol=1e-4, rtol=1e-4)
    assert (between - alone).abs().max() > 0.05, "between all voxels it takes in the other slices"


@torch.no_grad()
def test_a_slice_does_not_depend_on_the_others(randomise):
    within = use_slice_norms(SliceAttention(randomise(generative(2), scale=1.0)))
    torch.testing.assert_close(within(X[:, :, 1:]), within(X)[:, :, 1:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("networks_from", ["generative", "core"])
def test_full_attends_within_slices_alone(networks_from):
    with torch.device("meta"):
        network = build_restorer("full", networks_from=networks_from)
    kinds = [type(module) for module in network.modules()]
    # Encoder and decoder one each; two levels of two and three, and the middle, of the denoiser.
    assert kinds.count(SliceAttention) == 2 + 2 * (2 + 3) + 1
    assert nn.GroupNorm not in kinds and SliceGroupNorm in kinds


def test_a_release_with_other_names_stops_the_build():
    with pytest.raises(RuntimeError, match="no attention block was found"):
        use_slice_attention(nn.Sequential(nn.Conv3d(1, 1, 1)))
