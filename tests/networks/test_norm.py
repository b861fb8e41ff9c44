import torch
from torch import nn

from bundle.networks.norm import SliceGroupNorm, VoxelLayerNorm, drop_norms, use_slice_norms, use_voxel_norms

X = torch.randn(2, 6, 5, 4, 3, generator=torch.Generator().manual_seed(0)) * 7 + 3


def nested() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(6, 6, 1), nn.ModuleDict({"a": nn.GroupNorm(2, 6, eps=1e-3), "b": nn.Sequential(nn.GroupNorm(3, 6))})
    )


def test_every_voxel_is_normalised_over_its_channels():
    y = VoxelLayerNorm(6)(X)
    assert y.shape == X.shape
    torch.testing.assert_close(y.mean(1), torch.zeros_like(y[:, 0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.var(1, unbiased=False), torch.ones_like(y[:, 0]), atol=1e-4, rtol=0)


def test_a_part_is_the_part_of_the_whole():
    norm = VoxelLayerNorm(6)
    assert torch.equal(norm(X[:, :, 1:4, 2:, :1]), norm(X)[:, :, 1:4, 2:, :1])
    assert torch.equal(norm(X[:1]), norm(X)[:1])


def test_it_is_pytorchs_layer_norm_with_group_norms_names_and_shapes():
    group, norm = nn.GroupNorm(3, 6), VoxelLayerNorm(6)
    nn.init.normal_(group.weight)
    nn.init.normal_(group.bias)
    norm.load_state_dict(group.state_dict())
    layer = nn.LayerNorm(6, eps=1e-6)
    layer.load_state_dict(group.state_dict())
    torch.testing.assert_close(norm(X), layer(X.movedim(1, -1)).movedim(-1, 1))


def test_use_voxel_norms_exchanges_all_and_keeps_names_and_eps():
    net = nested()
    names = [(name, weight.shape) for name, weight in net.state_dict().items()]
    assert use_voxel_norms(net) is net
    assert not [m for m in net.modules() if isinstance(m, nn.GroupNorm)]
    assert [m.eps for m in net.modules() if isinstance(m, VoxelLayerNorm)] == [1e-3, 1e-5]
    assert [(name, weight.shape) for name, weight in net.state_dict().items()] == names


def test_drop_norms_leaves_the_identity():
    net = nn.Sequential(nn.GroupNorm(2, 6), nn.Sequential(nn.InstanceNorm3d(6, affine=True)))
    assert drop_norms(net) is net
    assert torch.equal(net(X), X)
    assert not list(net.parameters())


def grouped() -> tuple[nn.GroupNorm, SliceGroupNorm]:
    """PyTorch's norm and that of slices, with the same weights."""
    group, norm = nn.GroupNorm(3, 6, eps=1e-6), SliceGroupNorm(3, 6)
    nn.init.normal_(group.weight)
    nn.init.normal_(group.bias)
    norm.load_state_dict(group.state_dict())
    return group, norm


def test_a_slice_is_normalised_as_group_norm_does_where_it_is_alone():
    group, norm = grouped()
    slices = X.movedim(-1, 2)  # B, C, D, H, W
    alone = torch.cat([group(slices[:, :, k : k + 1]) for k in range(slices.shape[2])], dim=2)
    torch.testing.assert_close(norm(slices), alone, atol=1e-5, rtol=1e-5)
    assert (group(slices) - alone).abs().max() > 0.1, "GroupNorm of several sees all of them"


def test_a_slice_does_not_depend_on_the_others():
    _, norm = grouped()
    slices = X.movedim(-1, 2)
    torch.testing.assert_close(norm(slices[:, :, 1:]), norm(slices)[:, :, 1:], atol=1e-6, rtol=0)
    assert norm(slices[:, :, :0]).shape == (2, 6, 0, 5, 4)


def test_use_slice_norms_exchanges_all_and_keeps_names_groups_and_eps():
    net = nested()
    names = [(name, weight.shape) for name, weight in net.state_dict().items()]
    assert use_slice_norms(net) is net
    assert not [m for m in net.modules() if isinstance(m, nn.GroupNorm)]
    norms = [m for m in net.modules() if isinstance(m, SliceGroupNorm)]
    assert [(m.groups, m.eps) for m in norms] == [(2, 1e-3), (3, 1e-5)]
    assert [(name, weight.shape) for name, weight in net.state_dict().items()] == names
