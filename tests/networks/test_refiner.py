import copy

import pytest
import torch
from torch import nn

from bundle.networks import refiner as module
from bundle.networks.layout import depth_to_space, from_slices_first
from bundle.networks.refiner import BLOCK, Refiner


def inputs(shape=(2, 1, 8, 16, 3), *, noise: float = 0.02, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    base = torch.rand(shape, generator=generator) * 2 - 1
    restored = base + noise * torch.randn(shape, generator=generator)
    return base, restored, torch.full((shape[0], 1, 1, 1, shape[4]), noise)


@pytest.fixture
def refiner(randomise):
    return randomise(Refiner((4, 8, 8)), scale=0.05)


def test_a_fresh_refiner_corrects_nothing():
    assert Refiner((4, 8, 8)).eval()(*inputs()).abs().max() == 0


def test_its_network_works_channels_last(refiner):
    seen = []
    refiner.net.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    refiner(*inputs())
    assert seen[0].is_contiguous(memory_format=torch.channels_last_3d)
    assert not seen[0].is_contiguous()


@pytest.mark.parametrize("depth", [1, 2, 7])
def test_slices_are_kept_and_one_is_enough(refiner, depth):
    shape = (1, 1, 8, 16, depth)
    assert refiner(*inputs(shape)).shape == shape


def test_sizes_that_are_multiples_pass(refiner):
    assert refiner.multiple == 8
    assert refiner(*inputs((1, 1, 8, 24, 1))).shape == (1, 1, 8, 24, 1)


def test_nothing_in_it_depends_on_the_window(refiner):
    assert not [m for m in refiner.modules() if isinstance(m, (nn.InstanceNorm3d, nn.GroupNorm, nn.BatchNorm3d))]


def test_samples_of_a_batch_do_not_meet(refiner):
    base, restored, noise = inputs()
    apart = [refiner(base[k : k + 1], restored[k : k + 1], noise[k : k + 1]) for k in range(2)]
    torch.testing.assert_close(refiner(base, restored, noise), torch.cat(apart), atol=1e-6, rtol=1e-4)


def test_a_change_far_from_a_pixel_leaves_it_alone(refiner):
    base, restored, noise = inputs((1, 1, 64, 64, 1))
    changed = restored.clone()
    changed[:, :, :4, :4] += 0.5
    before, after = refiner(base, restored, noise), refiner(base, changed, noise)
    assert (before - after)[:, :, :4, :4].abs().min() > 0
    assert (before - after)[:, :, 48:, 48:].abs().max() == 0


def test_pixels_of_a_block_keep_their_order(refiner):
    """With a last layer that gives the removed part back, the correction is input less restoration, pixel by pixel."""
    base, restored, noise = inputs(noise=0.25)
    refiner.net.forward = lambda x: x[:, : BLOCK**2].clone()
    torch.testing.assert_close(refiner(base, restored, noise), base - restored, atol=1e-6, rtol=1e-5)


def test_its_correction_is_in_units_of_the_noise(refiner):
    """All features but the noise's own logarithm given, the correction is in proportion to the noise."""
    seen = []
    hook = refiner.net.register_forward_hook(lambda module, arguments, output: seen.append(output))
    base, restored, noise = inputs()
    correction = refiner(base, restored, noise)
    hook.remove()
    torch.testing.assert_close(correction, noise * from_slices_first(depth_to_space(seen[0], BLOCK)))


def test_gradient_reaches_every_weight(refiner):
    refiner(*inputs()).square().sum().backward()
    assert [name for name, p in refiner.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_what_no_scan_holds_does_not_run_away(refiner):
    """An untrained diffusion gives values far beyond HU; what the network sees stays within 4000 HU or 6 deviations."""
    seen = []
    refiner.net.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    base, restored, noise = inputs()
    refiner(base, 1.0e6 * restored, noise)
    assert seen[0].abs().max() == 16


@pytest.mark.parametrize("batch", [1, 2])
@torch.no_grad()
def test_a_few_slices_at_a_time_are_all_of_them(refiner, monkeypatch, batch):
    given = inputs((batch, 1, 16, 24, 2 * module._SLICES + 3))
    passes = []
    refiner.net.skip_layers.upsample.conv_block.register_forward_hook(lambda *_: passes.append(1))
    found = refiner(*given)
    assert len(passes) == 3
    monkeypatch.setattr(module, "_SLICES", 1000)
    torch.testing.assert_close(found, refiner(*given), atol=1e-6, rtol=1e-5)
    assert len(passes) == 4


@torch.no_grad()
def test_a_copy_has_weights_of_its_own(refiner):
    given = inputs((1, 1, 16, 24, module._SLICES + 1))
    before = refiner(*given)
    other = copy.deepcopy(refiner)
    for weight in refiner.parameters():
        weight.zero_()
    torch.testing.assert_close(other(*given), before, atol=0, rtol=0)
