"""The baselines' networks are what their names say."""

import pytest
import torch

from bundle.errors import BundleError
from bundle.evaluation.networks import DEFINITIONS, NETWORKS, RedCnn, ResidualUNet3d, build_baseline


def test_red_cnn_has_the_published_size():
    network = RedCnn()
    kernels = [p for p in network.parameters() if p.ndim == 4]
    assert len(kernels) == 10 and all(k.shape[2:] == (5, 5) for k in kernels)
    ends = 2 * 96 * 25 + 96 + 1
    assert sum(p.numel() for p in network.parameters()) == ends + 8 * (96 * 96 * 25 + 96)


@pytest.mark.parametrize("network", [RedCnn(4), ResidualUNet3d((4, 8, 8))], ids=["redcnn", "unet3d"])
@pytest.mark.parametrize("shape", [(48, 40, 3), (45, 51, 1)])
def test_any_size_comes_back(network, shape):
    with torch.no_grad():
        assert network(torch.randn(2, 1, *shape) * 100).shape == (2, 1, *shape)


def test_red_cnn_works_slice_by_slice_and_the_unet_across_slices():
    torch.manual_seed(0)
    volume = 100 * torch.randn(1, 1, 40, 40, 5)
    changed = volume.clone()
    changed[..., 2] += 50
    for network, expected in ((RedCnn(4), {2}), (_moved(ResidualUNet3d((4, 8, 8))), {0, 1, 2, 3, 4})):
        with torch.no_grad():
            difference = (network(changed) - changed) - (network(volume) - volume)
        assert {k for k in range(5) if difference[..., k].abs().max() > 1e-3} == expected


def test_the_unet_starts_as_the_identity():
    volume = 100 * torch.randn(1, 1, 32, 32, 4)
    assert torch.equal(ResidualUNet3d()(volume), volume)


def test_names():
    assert set(NETWORKS) == set(DEFINITIONS)
    with pytest.raises(BundleError, match="unknown"):
        build_baseline("resnet")


def _moved(network):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network
