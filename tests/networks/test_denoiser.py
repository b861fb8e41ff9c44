import pytest
import torch
from torch import nn

from bundle.networks.attention import SliceAttention
from bundle.networks.denoiser import Denoiser
from bundle.networks.norm import SliceGroupNorm, VoxelLayerNorm


def denoiser(**changes) -> Denoiser:
    arguments = {
        "context_channels": 3,
        "channels": (8, 16),
        "attention_levels": (False, False),
        "num_res_blocks": 1,
        "norm_groups": None,
        "networks_from": "generative",
    }
    return Denoiser(4, **{**arguments, **changes})


def inputs(shape=(2, 4, 6, 8, 3), *, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    z_t, degraded = (torch.randn(shape, generator=generator) for _ in range(2))
    context = torch.randn(shape[0], 3, 1, 1, shape[4], generator=generator)
    return z_t, degraded, torch.full((shape[0],), 0.6), context


@pytest.mark.parametrize("shape", [(2, 4, 6, 8, 3), (1, 4, 4, 2, 1)])
def test_a_fresh_denoiser_predicts_zero_of_the_latents_shape(shape):
    predicted = denoiser()(*inputs(shape))
    assert predicted.shape == shape
    assert not predicted.any()


@torch.no_grad()
def test_every_input_counts(randomise):
    net = randomise(denoiser(), scale=0.1)
    given = inputs()
    reference = net(*given)
    for position, other in enumerate((*inputs(seed=1)[:2], torch.full((2,), 0.3), inputs(seed=1)[3])):
        changed = list(given)
        changed[position] = other
        assert (net(*changed) - reference).abs().max() > 1e-4


@torch.no_grad()
def test_context_is_constant_in_plane_and_belongs_to_its_slice(randomise):
    net = randomise(denoiser(), scale=0.1)
    z_t, degraded, t, context = inputs()
    expanded = context.expand(-1, -1, 6, 8, -1)
    assert torch.equal(net(z_t, degraded, t, context), net(z_t, degraded, t, expanded))


@torch.no_grad()
def test_without_context_none_is_needed(randomise):
    net = randomise(denoiser(context_channels=0), scale=0.1)
    z_t, degraded, t, context = inputs()
    assert torch.equal(net(z_t, degraded, t, None), net(z_t, degraded, t, context))


@torch.no_grad()
def test_samples_of_a_batch_do_not_meet(randomise):
    net = randomise(denoiser(), scale=0.1)
    z_t, degraded, _, context = inputs()
    t = torch.tensor([0.2, 0.9])
    apart = [net(z_t[k : k + 1], degraded[k : k + 1], t[k : k + 1], context[k : k + 1]) for k in range(2)]
    torch.testing.assert_close(net(z_t, degraded, t, context), torch.cat(apart), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("networks_from", ["generative", "core"])
def test_without_groups_nothing_depends_on_the_window(networks_from):
    net = denoiser(networks_from=networks_from)
    assert not [m for m in net.modules() if isinstance(m, nn.GroupNorm)]
    assert [m for m in net.modules() if isinstance(m, VoxelLayerNorm)]
    assert not [name for name, _ in net.named_parameters() if "to_q" in name]


def test_with_groups_norms_and_attention_are_those_of_slices():
    net = denoiser(channels=(32, 64), attention_levels=(False, True), norm_groups=8)
    kinds = [type(module) for module in net.modules()]
    assert SliceGroupNorm in kinds and SliceAttention in kinds and nn.GroupNorm not in kinds
    assert [name for name, _ in net.named_parameters() if "to_q" in name]


def test_its_multiple_is_what_its_levels_halve():
    assert denoiser().multiple == 2
    assert denoiser(channels=(8, 8, 8), attention_levels=(False,) * 3).multiple == 4


@pytest.mark.parametrize("networks_from", ["generative", "core"])
def test_gradient_reaches_every_weight(randomise, networks_from):
    net = randomise(denoiser(networks_from=networks_from))
    net(*inputs()).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@torch.no_grad()
def test_it_predicts_in_float32_under_autocast(randomise):
    net = randomise(denoiser(), scale=0.1)
    reference = net(*inputs())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = net(*inputs())
    assert mixed.dtype == torch.float32
    assert 0 < (mixed - reference).abs().max() < 0.1 * reference.abs().max()
