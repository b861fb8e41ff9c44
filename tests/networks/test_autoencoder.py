import pytest
import torch
from lossless_autoencoders import HU_PER_UNIT, PACKAGES, images, lossless
from torch import nn

from bundle.networks.autoencoder import full_precision


def scaled(autoencoder):
    """With a latent's scale as it is measured, other for each channel."""
    channels = torch.arange(1.0, autoencoder.latent_channels + 1)
    autoencoder.latent_mean.copy_(0.1 * channels)
    autoencoder.latent_std.copy_(0.5 + channels)
    return autoencoder


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("networks_from", PACKAGES)
def test_weights_that_lose_nothing_are_computed_as_a_change_of_basis(monkeypatch, factor, networks_from):
    """Values, and gradients with respect to image and latent, are those of the network's own layers."""
    autoencoder = scaled(lossless(factor, networks_from=networks_from)).requires_grad_(False)
    x = images().clamp(-1, 3.071).requires_grad_()

    def results():
        z = autoencoder.encode(x)
        found = [z, autoencoder.decode(z), autoencoder.decode_difference(z, 0.5 * z.detach())]
        return [*found, torch.autograd.grad(sum((value.square() * value.cos()).sum() for value in found), x)[0]]

    fast = results()
    with monkeypatch.context() as patch:
        patch.setattr(autoencoder.net.encoder, "forward", None)
        patch.setattr(autoencoder, "distribution", None)
        patch.setattr(autoencoder, "decode_raw", None)
        assert len(results()) == 4  # none of the layers is asked
    monkeypatch.setattr(autoencoder, "only_changes_basis", lambda: False)
    for found, expected in zip(fast, results(), strict=True):
        torch.testing.assert_close(found, expected, atol=2e-5 * float(expected.abs().max()), rtol=1e-4)


@torch.no_grad()
def test_a_change_of_basis_is_exact_under_bfloat16():
    autoencoder, x = scaled(lossless(4)), images().clamp(-1, 3.071)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = autoencoder.encode(x)
        back = autoencoder.decode(z)
        change = autoencoder.decode_difference(z, 0.5 * z)
    torch.testing.assert_close(z, autoencoder.encode(x))
    torch.testing.assert_close(back, x, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(change, autoencoder.decode_difference(z, 0.5 * z))


def test_weights_that_learn_or_have_moved_are_used(randomise):
    autoencoder, x = lossless(4), images()
    autoencoder.encode(x).sum().backward()
    assert autoencoder.net.quant_conv_mu.conv.weight.grad is not None
    with torch.no_grad():
        before = autoencoder.encode(x)
        autoencoder.net.quant_conv_mu.conv.weight.mul_(2)
        torch.testing.assert_close(autoencoder.encode(x), 2 * before)
        autoencoder.net.quant_conv_mu.conv.weight.div_(2)
        torch.testing.assert_close(autoencoder.encode(x), before)
        other = randomise(lossless(4), scale=0.05)
        autoencoder.load_state_dict(other.state_dict())
        assert torch.equal(autoencoder.encode(x), other.encode(x))
        assert not torch.allclose(autoencoder.encode(x), before, atol=0.01)


@torch.no_grad()
def test_a_graph_recorded_after_weights_were_loaded_is_of_these(randomise):
    """While it is recorded the weights have no values to look at, and before they were a change of basis."""
    autoencoder, x = lossless(4), images()
    autoencoder.encode(x)
    autoencoder.load_state_dict(randomise(lossless(4), scale=0.05).state_dict())
    module = nn.Module()
    module.autoencoder = autoencoder
    module.forward = autoencoder.encode
    program = torch.export.export(module, (x,), strict=False).module()
    torch.testing.assert_close(program(x), autoencoder.encode(x), atol=1e-4, rtol=1e-4)


def test_weights_made_for_inference_alone_are_used():
    with torch.inference_mode():  # they do not tell when they change
        autoencoder, x = lossless(4), images()
        torch.testing.assert_close(autoencoder.decode(autoencoder.encode(x)), x, atol=1e-4, rtol=1e-5)


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
    torch.testing.assert_close(autoencoder.encode(x), autoencoder.distribution(x)[0], atol=1e-5, rtol=1e-5)


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
