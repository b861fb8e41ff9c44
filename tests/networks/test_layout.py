import copy
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional

from bundle.networks.inplane import DenoiserDownsample, EncoderDownsample, InPlaneUpsample
from bundle.networks.layout import (
    convolve,
    depth_to_space,
    from_slices_first,
    space_to_depth,
    to_slices_first,
    use_slices_first,
)

X = torch.rand(2, 4, 8, 12, 5, generator=torch.Generator().manual_seed(0))
MODULES = {
    "convolution": lambda: nn.Conv3d(4, 6, (3, 5, 1), stride=(2, 1, 1), padding=(1, 2, 0), dilation=(1, 1, 2)),
    "groups": lambda: nn.Conv3d(4, 4, 3, padding=1, groups=2, bias=False),
    "transposed": lambda: nn.ConvTranspose3d(
        4, 3, (2, 4, 3), stride=(2, 3, 1), padding=(0, 1, 1), output_padding=(1, 2, 0)
    ),
    "encoder": lambda: EncoderDownsample(4),
    "denoiser": lambda: DenoiserDownsample(4),
    "nearest": lambda: InPlaneUpsample(4),
    "upsample": lambda: InPlaneUpsample(4, transposed=True),
}


def test_there_and_back_is_the_same_memory():
    there = to_slices_first(X)
    assert there.shape == (2, 4, 5, 8, 12)
    assert there.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(from_slices_first(there), X)
    assert from_slices_first(there).data_ptr() == there.data_ptr()
    assert (
        to_slices_first(from_slices_first(there)).data_ptr() == there.data_ptr()
    )  # nothing is copied between networks


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_blocks_of_pixels_become_channels_and_back(factor):
    x = to_slices_first(X).requires_grad_()
    there = space_to_depth(x, factor)
    for block in range(factor**2):
        row, column = divmod(block, factor)
        assert torch.equal(there[:, 4 * block : 4 * block + 4], x[..., row::factor, column::factor])
    assert there.is_contiguous(memory_format=torch.channels_last_3d)
    back = depth_to_space(there, factor)
    assert torch.equal(back, x)
    weights = torch.rand(X.shape).permute(0, 1, 4, 2, 3)
    assert torch.equal(torch.autograd.grad((weights * back).sum(), x)[0], weights)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_the_same_function_with_the_same_weights(name):
    torch.manual_seed(0)
    module = MODULES[name]()
    changed = use_slices_first(copy.deepcopy(module))
    assert list(changed.state_dict()) == list(module.state_dict())
    x, y = X.clone().requires_grad_(), X.clone().requires_grad_()
    expected, found = module(x), from_slices_first(changed(to_slices_first(y)))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    weight = torch.rand(expected.shape)
    (expected * weight).sum().backward()
    (found * weight).sum().backward()
    torch.testing.assert_close(y.grad, x.grad, atol=1e-4, rtol=1e-4)
    for one, other in zip(changed.parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", ["convolution", "groups"])
@pytest.mark.parametrize("samples", [1, 2])
def test_without_gradients_it_is_the_same_function(name, samples):
    torch.manual_seed(0)
    changed = use_slices_first(MODULES[name]())
    x = to_slices_first(X[:samples])
    with torch.no_grad():
        fast = changed(x)
    torch.testing.assert_close(fast, changed(x), atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this processor has no bfloat16")
def test_under_autocast_one_sample_is_rounded_as_in_a_batch():
    torch.manual_seed(0)
    changed = use_slices_first(MODULES["convolution"]())
    x = to_slices_first(X)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        alone, together = changed(x[:1]), changed(x)
    assert alone.dtype is together.dtype is torch.bfloat16
    assert torch.equal(alone, together[:1])


@pytest.mark.parametrize("mixed", [False, True])
def test_a_leaky_relu_in_a_convolution_is_the_one_after_it(mixed):
    conv = nn.Conv3d(4, 6, 3, padding=1, stride=(2, 1, 1))
    x = to_slices_first(X)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
        recorded = convolve(conv, x, conv.bias, slope=0.1)  # with gradients, torch's own operations
        expected = functional.leaky_relu(convolve(conv, x, conv.bias), 0.1)
        with torch.no_grad():
            found = convolve(conv, x, conv.bias, slope=0.1)
    assert torch.equal(recorded, expected)
    assert found.dtype == expected.dtype
    assert expected.min() < 0
    torch.testing.assert_close(found, expected, atol=0.01 if mixed else 1e-6, rtol=0.01 if mixed else 1e-5)


def test_an_activation_in_a_convolution_keeps_nothing_of_its_own_for_the_gradient():
    conv, kept = nn.Conv3d(4, 6, 3), []
    x = to_slices_first(X)
    with torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value) or value, lambda value: value):
        result = convolve(conv, x, conv.bias, slope=0.1)
    places = {value.untyped_storage().data_ptr() for value in kept}
    assert places == {value.untyped_storage().data_ptr() for value in (x, conv.weight, result)}


_BFLOAT16_ANYWHERE = """
import torch
from bundle.networks.layout import convolve
torch.manual_seed(0)
conv, x = torch.nn.Conv3d(4, 4, 3, padding=1), torch.rand(1, 4, 3, 8, 8)
with torch.no_grad():
    expected = torch.nn.functional.leaky_relu(convolve(conv, x, conv.bias), 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = convolve(conv, x, conv.bias, slope=0.1)
print(found.dtype, float((found - expected).abs().max()))
"""


def test_bfloat16_computes_on_processors_that_onednn_has_none_for():
    """`mixed_precision bf16` may be asked for anywhere; oneDNN is told here that the processor is an older one."""
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", _BFLOAT16_ANYWHERE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kind, largest = done.stdout.split()
    assert kind == "torch.bfloat16" and float(largest) < 0.02


def test_a_bias_can_be_left_out():
    conv = use_slices_first(nn.Conv3d(4, 2, 3))
    x = to_slices_first(X)
    torch.testing.assert_close(convolve(conv, x, None) + conv.bias[:, None, None, None], conv(x))


def test_a_second_time_changes_nothing():
    net = nn.Sequential(nn.Conv3d(4, 4, 3), InPlaneUpsample(4))
    x = to_slices_first(X)
    first = use_slices_first(net)(x)
    assert torch.equal(use_slices_first(net)(x), first)


@pytest.mark.parametrize("kind", [nn.Conv3d, nn.ConvTranspose3d])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 3, 13, 16])
def test_one_slice_is_convolved_as_the_same_slice_between_two_of_zeros(kind, dtype, channels):
    """With AMX oneDNN gives garbage for one slice of 1, 3 or 13 channels in bfloat16."""
    torch.manual_seed(0)
    network = use_slices_first(nn.Sequential(kind(channels, 32, 3, padding=1)))
    x = torch.randn(1, channels, 1, 64, 64).contiguous(memory_format=torch.channels_last_3d)
    padded = functional.pad(x, (0, 0, 0, 0, 1, 1))
    with torch.no_grad():
        expected = network(padded)[:, :, 1:2]
        with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
            found = network(x).float()
    limit = 0.02 if dtype is torch.bfloat16 else 1e-5
    assert (found - expected).abs().max() < limit * expected.abs().max()
