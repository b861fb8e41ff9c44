"""Slices that come a few at a time give what the whole volume gives; what cannot be so is refused by name."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from bundle.networks.inplane import InPlaneUpsample
from bundle.networks.layout import each_slice, use_slices_first
from bundle.networks.slice_stream import NotStreamable, SliceStream

DEPTH = 11


def flowing(network, volume, *, at_once, most=None, dtype=None):
    """Results of all passes over (B, C, D, H, W), and how many slices each gave."""
    depth = volume.shape[2]
    stream, results, start = SliceStream(depth=depth, most=most or at_once), [], 0
    with torch.no_grad():
        while sum(part.shape[2] for part in results) < depth:
            part = volume[:, :, start : min(start + at_once, depth)]
            with stream, torch.autocast("cpu", dtype, enabled=dtype is not None):
                result = network(stream.mark(part.clone(), axis=2, first=min(start, depth)))
            assert stream.first(result) == sum(part.shape[2] for part in results), "slices come in order"
            results.append(result)
            start += at_once
            assert len(results) < 10 * depth, "every pass goes on"
    return torch.cat(results, dim=2), [part.shape[2] for part in results]


class Branches(nn.Module):
    """What the bundle's networks are made of: branches of different depth that meet, halving and doubling in plane."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.enter = nn.Conv3d(2, 6, 3, padding=1)
        self.down = nn.Conv3d(6, 6, 3, stride=(2, 2, 1), padding=1)
        self.deep = nn.Sequential(*[nn.Conv3d(6, 6, 3, padding=1) for _ in range(4)])
        self.up = nn.ConvTranspose3d(6, 6, 3, stride=(2, 2, 1), padding=1, output_padding=(1, 1, 0))
        self.doubled = InPlaneUpsample(6)
        self.wide = nn.Conv3d(12, 3, 5, padding=2)
        self.point = nn.Conv3d(2, 3, 1)
        use_slices_first(self)

    def forward(self, x):
        early = functional.silu(self.enter(x))
        half = self.down(early)
        late = self.up(functional.leaky_relu(self.deep(half), inplace=True)) + self.doubled(half)
        return self.wide(torch.cat([early, late], dim=1)) + self.point(x)


@pytest.fixture(scope="module")
def volume():
    return torch.randn(1, 2, DEPTH, 8, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("at_once", [1, 2, 3, 5, DEPTH, 20])
def test_the_result_is_that_of_the_whole_volume(volume, at_once):
    network = Branches()
    with torch.no_grad():
        whole = network(volume)
    result, counts = flowing(network, volume, at_once=at_once)
    torch.testing.assert_close(result, whole, atol=1e-5, rtol=1e-5)
    assert max(counts) <= at_once and sum(counts) == DEPTH


def test_one_slice_flows(volume):
    network = Branches()
    result, _ = flowing(network, volume[:, :, :1], at_once=4)
    torch.testing.assert_close(result, network(volume[:, :, :1]).detach(), atol=1e-5, rtol=1e-5)


def test_a_batch_flows(volume):
    network, batch = Branches(), torch.cat([volume, -volume])
    result, _ = flowing(network, batch, at_once=3)
    torch.testing.assert_close(result, network(batch).detach(), atol=1e-5, rtol=1e-5)


def test_no_operation_computes_more_slices_than_it_may(volume):
    network, seen = Branches(), []
    for module in network.modules():
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)) and module is not network.point:
            module.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape[2]))
    flowing(network, volume, at_once=5, most=2)
    assert max(seen) == 2
    assert sum(seen) == DEPTH * 8, "each convolution computes each slice once"


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this processor has no bfloat16")
def test_autocast_reaches_the_network(volume):
    network = Branches()
    result, _ = flowing(network, volume, at_once=4, dtype=torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        whole = network(volume)
    assert result.dtype is torch.bfloat16
    torch.testing.assert_close(result.float(), whole.float(), atol=0.05, rtol=0.05)


def test_what_was_held_is_no_view_of_all_that_came(volume):
    """Two slices kept for a convolution must not keep the pass' slices alive."""
    network, stream = Branches(), SliceStream(depth=1000, most=8)
    with torch.no_grad(), stream:
        network(stream.mark(torch.cat([volume] * 3, dim=2), axis=2, first=0))
    for held in stream._held.values():
        assert held.untyped_storage().nbytes() == held.numel() * held.element_size()


class Around(nn.Module):
    """One operation, a function of x (B, C, D, H, W)."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: functional.group_norm(x, 2), "group_norm may mix slices"),
        (lambda x: x - x.mean(), "mean may mix slices"),
        (lambda x: x.softmax(2), "softmax may mix slices"),
        (lambda x: x.roll(1, 2), "roll may mix slices"),
        (lambda x: x.flip([2]), "slices in the opposite order"),
        (lambda x: functional.avg_pool3d(x, (3, 1, 1), stride=1, padding=(1, 0, 0)), "an average over slices"),
        (lambda x: functional.layer_norm(x, x.shape[2:]), "a norm over slices"),
        (lambda x: x.flip(-1, 2), "slices in the opposite order"),
        (lambda x: functional.pad(x, (0, 0, 0, 0, 1, 1)), "pad changes the number of slices"),
        (lambda x: torch.cat([x, x], dim=2), "cat changes the number of slices"),
        (lambda x: x[:, :, 1:], "__getitem__ takes some of the slices"),
        (lambda x: functional.conv3d(x, torch.ones(1, 2, 3, 1, 1), None, 1, 0), "padding"),
        (lambda x: torch.add(x, other=x), "add is given slices by keyword"),
        (lambda x: x.isnan().all(dim=2, keepdim=True), "all of slices"),
        (lambda x: x.isnan().any(), "any of slices"),
        (lambda x: each_slice(x.movedim(2, 3), torch.relu), "each_slice of what are no slices"),
        (lambda x: x.flatten(1, 2), "flatten of slices"),
        (lambda x: x.flatten(), "flatten of slices"),
        (lambda x: x.unflatten(2, (2, 2)), "unflatten of slices"),
        (lambda x: functional.interpolate(x, scale_factor=2.0), "interpolate changes the number of slices"),
    ],
)
def test_what_mixes_slices_is_refused(volume, function, reason):
    with pytest.raises(NotStreamable, match=reason):
        flowing(Around(function), volume, at_once=4)
