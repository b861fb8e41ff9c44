import pytest
import torch
from torch import nn

from bundle.networks.autoencoder import Autoencoder, block_cosine_basis, full_precision, lossless_start
from bundle.networks.compat import build_autoencoder
from bundle.networks.inplane import make_autoencoder_in_plane
from bundle.networks.norm import drop_norms

PACKAGES = ["generative", "core"]
CHANNELS = {2: (4, 4), 4: (4, 16, 16)}
HU_PER_UNIT = 1000


def bare(channels, *, latent: int, networks_from: str = "generative") -> nn.Module:
    net = build_autoencoder(
        networks_from,
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        num_res_blocks=(0,) + (1,) * (len(channels) - 1),
        num_channels=channels,
        attention_levels=(False,) * len(channels),
        latent_channels=latent,
        norm_num_groups=1,
        with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
    )
    return drop_norms(make_autoencoder_in_plane(net, transposed=True))


def lossless(factor: int, *, networks_from: str = "generative", exact_path: bool = True) -> Autoencoder:
    net = lossless_start(bare(CHANNELS[factor], latent=factor**2, networks_from=networks_from), factor=factor)
    return Autoencoder(net, latent_channels=factor**2, factor=factor, exact_path=exact_path).eval()


def images(shape=(2, 1, 16, 24, 3), *, seed: int = 0) -> torch.Tensor:
    """Uniform noise over -1000..3071 HU and some metal, in network units."""
    x = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 4.071 - 1
    x[..., :2, :2, :] = 30.0
    return x


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("networks_from", PACKAGES)
@torch.no_grad()
def test_a_lossless_start_gives_back_any_image(factor, networks_from):
    autoencoder, x = lossless(factor, networks_from=networks_from), images()
    z = autoencoder.encode(x)
    assert z.shape == (2, factor**2, 16 // factor, 24 // factor, 3)
    back = autoencoder.decode(z)
    inside = x.abs() < 5
    assert (back - x)[inside].abs().max() < 1e-5
    torch.testing.assert_close(back, x, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("factor", [2, 4])
@torch.no_grad()
def test_a_lossless_start_stays_so_whatever_the_latents_scale(factor):
    autoencoder, x = lossless(factor), images()
    autoencoder.measure(autoencoder.distribution(images(seed=1))[0] * 3 + 0.2)
    assert (autoencoder.decode(autoencoder.encode(x)) - x).abs().max() < 2e-5


@torch.no_grad()
def test_a_lossless_start_is_exact_under_bfloat16():
    """On the path around the residual branches nothing is rounded, though bfloat16 has steps of 4 HU at -1000 HU."""
    autoencoder, x = lossless(4), images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        back = autoencoder.decode(autoencoder.encode(x))
    assert back.dtype == torch.float32
    inside = x.abs() < 5
    assert (back - x)[inside].abs().max() < 1e-5
    # Without the exact path the same weights lose several HU.
    plain = lossless(4, exact_path=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = plain.decode(plain.encode(x))
    assert (rounded - x)[inside].square().mean().sqrt() * HU_PER_UNIT > 2


@torch.no_grad()
def test_a_moved_autoencoder_loses_little_under_bfloat16(randomise):
    """Only what the branches add is rounded, to 8 bits: 40 HU of it cost less than 0.2 HU."""
    start, moved = lossless(4), lossless(4)
    randomise(moved.net, scale=0.001)
    x = images().clamp(-1, 3.071)
    full = moved.decode(moved.encode(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = moved.decode(moved.encode(x))
    error_hu = (mixed - full).square().mean().sqrt() * HU_PER_UNIT
    added_hu = (full - start.decode(start.encode(x))).square().mean().sqrt() * HU_PER_UNIT
    assert added_hu > 5
    assert error_hu < 0.2
    assert error_hu < 0.005 * added_hu


@pytest.mark.parametrize("networks_from", PACKAGES)
@torch.no_grad()
def test_the_exact_path_is_the_same_function_in_float32(randomise, networks_from):
    exact, plain = (lossless(4, networks_from=networks_from, exact_path=flag) for flag in (True, False))
    randomise(exact, scale=0.1)
    plain.load_state_dict(exact.state_dict())
    x = images().clamp(-1, 3.071)
    (mean, std), (other_mean, other_std) = exact.distribution(x), plain.distribution(x)
    torch.testing.assert_close(mean, other_mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(std, other_std, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(exact.decode(mean), plain.decode(mean), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("exact_path", [True, False])
def test_a_difference_of_decodings_is_what_it_says(randomise, exact_path):
    net = lossless(4, exact_path=exact_path)
    randomise(net.net, scale=0.05)
    net.double()
    z = net.encode(images().double()).detach().double()
    other = z + 0.05 * torch.randn(z.shape, generator=torch.Generator().manual_seed(1))

    def gradients(values: torch.Tensor) -> list[torch.Tensor]:
        return torch.autograd.grad(values.square().sum(), net.decoder_parameters(), materialize_grads=True)

    expected, found = net.decode(other) - net.decode(z), net.decode_difference(other, z)
    largest = float(expected.detach().abs().max())
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=1e-5 * largest)
    for one, same in zip(gradients(found), gradients(expected), strict=True):
        torch.testing.assert_close(one, same, rtol=1e-4, atol=1e-5 * float(same.abs().max()) + 1e-6)


@torch.no_grad()
def test_under_bfloat16_the_error_of_a_difference_goes_with_the_change(randomise):
    net = lossless(4)
    randomise(net.net, scale=0.001)
    z = net.encode(images().clamp(-1, 3.071))
    other = z + 0.05 * torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    expected = net.decode_difference(other, z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = net.decode_difference(other, z)
    assert (rounded - expected).square().mean().sqrt() < 0.005 * expected.square().mean().sqrt()


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
    z = lossless(factor).encode(x)
    for row, column, slice_ in ((0, 0, 0), (1, 2, 1)):
        block = x[0, 0, row * factor : (row + 1) * factor, column * factor : (column + 1) * factor, slice_]
        expected = torch.from_numpy(dctn(block.numpy(), norm="ortho")).flatten()
        torch.testing.assert_close(z[0, :, row, column, slice_], expected, atol=1e-4, rtol=1e-5)


@torch.no_grad()
def test_measured_latents_have_mean_zero_and_deviation_one():
    autoencoder, x = lossless(4), images((3, 1, 32, 32, 4))
    autoencoder.measure(autoencoder.distribution(x)[0])
    z = autoencoder.encode(x).transpose(0, 1).flatten(1)
    torch.testing.assert_close(z.mean(1), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std(1), torch.ones(16), atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_constant_channel_does_not_divide_by_zero():
    autoencoder = lossless(2)
    autoencoder.measure(torch.ones(2, 4, 3, 3, 2))
    assert torch.isfinite(autoencoder.encode(images())).all()
    assert "latent_mean" in autoencoder.state_dict()
    assert "latent_std" in autoencoder.state_dict()


@torch.no_grad()
def test_encoding_is_the_mean_and_repeats():
    autoencoder, x = lossless(4), images()
    assert torch.equal(autoencoder.encode(x), autoencoder.encode(x))
    autoencoder.train()
    assert torch.equal(autoencoder.encode(x), autoencoder.distribution(x)[0])


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


def test_encoder_and_decoder_share_out_all_parameters():
    autoencoder = lossless(4)
    encoder, decoder = autoencoder.encoder_parameters(), autoencoder.decoder_parameters()
    ids = [id(parameter) for parameter in (*encoder, *decoder)]
    assert sorted(ids) == sorted(id(parameter) for parameter in autoencoder.parameters())


def test_gradient_reaches_every_weight(randomise):
    autoencoder = randomise(lossless(4), scale=0.05)
    mean, std = autoencoder.distribution(images())
    (autoencoder.decode_raw(mean + std * torch.randn_like(std)).square().mean() + std.sum()).backward()
    assert [name for name, p in autoencoder.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_full_precision_ends_autocast_inside():
    layer, x = nn.Linear(2, 2), torch.rand(1, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        with full_precision(x):
            assert layer(x).dtype == torch.float32
        assert layer(x).dtype == torch.bfloat16
