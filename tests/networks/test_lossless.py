import pytest
import torch
from lossless_autoencoders import HU_PER_UNIT, PACKAGES, bare, images, lossless
from torch import nn

from bundle.networks.lossless import block_cosine_basis, is_lossless, lossless_start


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("networks_from", PACKAGES)
@torch.no_grad()
def test_a_lossless_start_gives_back_any_image(factor, networks_from):
    autoencoder, x = lossless(factor, networks_from=networks_from), images()
    z = autoencoder.distribution(x)[0]
    assert z.shape == (2, factor**2, 16 // factor, 24 // factor, 3)
    back = autoencoder.decode_raw(z)
    inside = x.abs() < 5
    assert (back - x)[inside].abs().max() < 1e-5
    torch.testing.assert_close(back, x, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("factor", [2, 4])
def test_a_lossless_start_stays_so_whatever_the_latents_scale(factor):
    autoencoder, x = lossless(factor), images()
    autoencoder.measure(autoencoder.distribution(images(seed=1))[0] * 3 + 0.2)
    assert not autoencoder.only_changes_basis()  # with gradients the layers compute
    assert (autoencoder.decode(autoencoder.encode(x)) - x).abs().max() < 2e-5


@torch.no_grad()
def test_a_lossless_start_is_exact_under_bfloat16():
    """On the path around the residual branches nothing is rounded, though bfloat16 has steps of 4 HU at -1000 HU."""
    autoencoder, x = lossless(4), images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        back = autoencoder.decode_raw(autoencoder.distribution(x)[0])
    assert back.dtype == torch.float32
    inside = x.abs() < 5
    assert (back - x)[inside].abs().max() < 1e-5
    # Without the exact path the same weights lose several HU.
    plain = lossless(4, exact_path=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = plain.decode(plain.encode(x))
    assert (rounded - x)[inside].square().mean().sqrt() * HU_PER_UNIT > 2


@torch.no_grad()
def test_the_latents_noise_starts_at_one_hu():
    std = lossless(4).distribution(images())[1]
    assert (std * HU_PER_UNIT).min() > 0.9
    assert (std * HU_PER_UNIT).max() < 1.1


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_the_basis_is_orthonormal_with_the_mean_first(factor):
    basis = block_cosine_basis(factor)
    torch.testing.assert_close(basis @ basis.T, torch.eye(factor**2), atol=1e-6, rtol=0)
    torch.testing.assert_close(basis[0], torch.full((factor**2,), 1 / factor), atol=1e-6, rtol=0)


@pytest.mark.parametrize("factor", [2, 4])
@torch.no_grad()
def test_latents_are_the_cosine_transform_of_blocks(factor):
    """Against scipy's: catches pixels of a block in a wrong order, which orthonormality does not."""
    from scipy.fft import dctn

    x = images((1, 1, 2 * factor, 3 * factor, 2))
    z = lossless(factor).distribution(x)[0]
    for row, column, slice_ in ((0, 0, 0), (1, 2, 1)):
        block = x[0, 0, row * factor : (row + 1) * factor, column * factor : (column + 1) * factor, slice_]
        expected = torch.from_numpy(dctn(block.numpy(), norm="ortho")).flatten()
        torch.testing.assert_close(z[0, :, row, column, slice_], expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("channels", "latent", "factor"),
    [
        ((4, 8, 8), 16, 4),  # the second halving needs 16
        ((2, 4), 4, 2),  # the first halving needs 4 already
        ((4, 16, 8), 16, 4),  # lost on the lowest level
        ((4, 16, 16), 8, 4),  # lost in the latent
        ((4, 4), 4, 4),  # another factor than was built
        ((4, 16, 16), 16, 2),
    ],
)
def test_too_few_channels_are_refused(channels, latent, factor):
    with pytest.raises(ValueError, match="channels"):
        lossless_start(bare(channels, latent=latent), factor=factor)


@pytest.mark.parametrize("networks_from", PACKAGES)
@torch.no_grad()
def test_weights_are_known_as_lossless_until_one_moves(randomise, networks_from):
    net = lossless(4, networks_from=networks_from).net
    assert is_lossless(net, factor=4)
    for block in net.encoder.blocks:
        if hasattr(block, "conv2"):
            randomise(block.conv1)  # what no later weight lets through
    assert is_lossless(net, factor=4)
    assert not is_lossless(net, factor=2)
    for parameter in [net.quant_conv_mu.conv.weight, net.decoder.blocks[-1].conv.bias]:
        before = parameter.clone()
        parameter.view(-1)[-1] += 1e-6
        assert not is_lossless(net, factor=4)
        parameter.copy_(before)
    assert is_lossless(net, factor=4)


def test_a_network_that_cannot_be_lossless_is_not():
    assert not is_lossless(bare((4, 16, 8), latent=16), factor=4)
    net = bare((4, 16, 16), latent=16)
    net.encoder.blocks.append(nn.GroupNorm(1, 16))
    with pytest.raises(ValueError, match="GroupNorm does not leave its input as it is"):
        lossless_start(net, factor=4)
    assert not is_lossless(net, factor=4)


@pytest.mark.parametrize("fused", [False, True])
def test_weights_that_an_optimizer_changed_are_looked_at_again(fused):
    """A fused optimizer does not count its changes in the weights' `_version`."""
    autoencoder, x = lossless(4), images()
    with torch.no_grad():
        assert autoencoder.only_changes_basis()
    optimizer = torch.optim.AdamW(autoencoder.parameters(), lr=1e-3, fused=fused)
    autoencoder.decode_raw(autoencoder.distribution(x)[0]).square().mean().backward()
    optimizer.step()
    autoencoder.requires_grad_(False)
    assert not autoencoder.only_changes_basis()
    torch.testing.assert_close(autoencoder.encode(x), autoencoder.distribution(x)[0], rtol=1e-5, atol=1e-5)
