"""Laws of the joined network, on preset `tiny`; weights are random, so that no part of it is silent."""

import io

import pytest
import torch

from bundle.diffusion.noise import PositionalNoise
from bundle.metrics.noise import noise_level as estimate
from bundle.networks.presets import build_restorer
from bundle.networks.restorer import Restorer

SPACING = torch.tensor([[0.7, 0.7, 3.0]])


@pytest.fixture
def net(randomise) -> Restorer:
    return randomise(build_restorer("tiny"))


@pytest.fixture(autouse=True)
def without_gradients(request):
    if "gradient" in request.node.name:
        yield
        return
    with torch.no_grad():
        yield


def image(shape=(1, 1, 32, 48, 3), *, seed: int = 0) -> torch.Tensor:
    """Soft tissue and air with noise of 30 HU, in network units."""
    generator = torch.Generator().manual_seed(seed)
    hu = torch.full(shape, -1000.0)
    hu[:, :, 4:, 6:] = 40
    return (hu + 30 * torch.randn(shape, generator=generator)) / 1000


def levels(x: torch.Tensor, value: float = 30.0) -> torch.Tensor:
    return torch.full((x.shape[0], x.shape[4]), value)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_fresh_network_returns_its_input():
    x = image()
    assert (build_restorer("tiny").eval()(x) - x).abs().max() < 1e-6


def test_values_far_outside_the_window_survive():
    x = image()
    x[..., 10:14, 10:14, :] = 30.0
    assert (build_restorer("tiny").eval()(x) - x).abs().max() < 1e-4


@pytest.mark.parametrize("sampler", ["bridge", "ddim", "ddpm", "dpm_solver"])
def test_samples_are_drawn_where_the_network_is(sampler):
    """On the device without values, where tensors of the CPU are refused as on a GPU."""
    net, x = build_restorer("tiny", sampler=sampler).to("meta"), image().to("meta")
    noise = PositionalNoise(seed=0).at([(0, 0, 0)], net.latent_shape(x))
    assert noise(0).device.type == "cpu"
    for options in ({"noise": noise}, {"generator": generator(0)}):
        drawn = net.sample(x, steps=3, noise_level=levels(x).to("meta"), **options)
        assert drawn.device.type == "meta" and drawn.shape == x.shape


@pytest.mark.parametrize("shape", [(1, 1, 37, 50, 3), (1, 1, 9, 11, 1), (2, 1, 32, 40, 5), (1, 1, 5, 5, 2)])
def test_any_size_comes_back_in_its_shape(net, shape):
    x = image(shape)
    assert net(x).shape == shape
    assert net.sample(x, steps=2, generator=generator(0)).shape == shape
    assert net.reconstruct(x).shape == shape


def test_padding_changes_nothing_where_none_is_needed(net):
    """An odd size equals the size that it is padded to, with the border repeated."""
    x = image((1, 1, 37, 50, 3))
    rows, columns = [*range(37), *[36] * 3], [*range(50), *[49] * 6]
    padded = x[:, :, rows][:, :, :, columns]
    assert padded.shape[2] % net.multiple == padded.shape[3] % net.multiple == 0
    whole = net(padded, SPACING, levels(x))
    torch.testing.assert_close(net(x, SPACING, levels(x)), whole[:, :, :37, :50], atol=1e-5, rtol=1e-5)


def test_a_batch_is_its_samples(net):
    x = torch.cat([image(seed=1), 0.5 * image(seed=2)])
    spacing, level = torch.tensor([[0.6, 0.6, 1.0], [0.9, 0.9, 5.0]]), torch.tensor([[20.0] * 3, [40.0] * 3])
    apart = [net(x[k : k + 1], spacing[k : k + 1], level[k : k + 1]) for k in range(2)]
    torch.testing.assert_close(net(x, spacing, level), torch.cat(apart), atol=2e-5, rtol=1e-5)
    apart = [net(x[k : k + 1]) for k in range(2)]
    torch.testing.assert_close(net(x), torch.cat(apart), atol=2e-5, rtol=1e-5)


def test_restoration_repeats_and_draws_nothing(net):
    x, before = image(), torch.random.get_rng_state()
    assert torch.equal(net(x), net(x))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_noise_level_is_estimated_where_none_is_given(net):
    x = image((2, 1, 37, 50, 3))
    level = torch.stack([torch.from_numpy(estimate(1000 * volume[0].numpy())) for volume in x])
    torch.testing.assert_close(net(x), net(x, noise_level=level), atol=1e-5, rtol=1e-5)
    assert (net(x, noise_level=2 * level) - net(x)).abs().max() > 1e-4


def test_spacing_counts_and_none_is_a_typical_scan(net):
    x = image()
    typical = torch.tensor([[0.75, 0.75, 2.0]])
    assert torch.equal(net(x), net(x, typical))
    assert (net(x) - net(x, torch.tensor([[0.75, 0.75, 5.0]]))).abs().max() > 1e-5
    assert (net(x) - net(x, torch.tensor([[0.4, 0.4, 2.0]]))).abs().max() > 1e-5


def test_without_the_denoiser_the_latent_path_is_silent(net):
    x, level = image(), levels(image())
    conditions = net.conditions(x, None, level)
    torch.testing.assert_close(net.unrefined(conditions, conditions.latent), conditions.base, atol=2e-5, rtol=1e-5)
    with_denoiser = net(x, None, level)
    net.use_denoiser = False
    without = net(x, None, level)
    torch.testing.assert_close(without, net.refined(conditions, conditions.base), atol=2e-5, rtol=1e-5)
    assert (with_denoiser - without).abs().max() > 1e-3


def test_without_the_refiner_the_latent_path_is_left(net):
    x, level = image(), levels(image())
    with_refiner = net(x, None, level)
    net.use_refiner = False
    without = net(x, None, level)
    conditions = net.conditions(x, None, level)
    torch.testing.assert_close(with_refiner, net.refined(conditions, without))
    assert (with_refiner - without).abs().max() > 1e-4


def test_without_both_the_input_comes_back(net):
    net.use_denoiser = net.use_refiner = False
    x = image((1, 1, 37, 50, 3))
    assert (net(x) - x).abs().max() < 2e-5


def test_one_sampled_step_of_the_bridge_is_the_restoration(net):
    x = image((1, 1, 37, 50, 3))
    assert torch.equal(net.sample(x, steps=1, generator=generator(0)), net(x))


def test_samples_repeat_with_a_seed_and_differ_with_another(net):
    x = image()
    first = net.sample(x, steps=3, generator=generator(0))
    assert torch.equal(first, net.sample(x, steps=3, generator=generator(0)))
    assert (first - net.sample(x, steps=3, generator=generator(1))).abs().max() > 1e-4
    assert (first - net.sample(x, steps=4, generator=generator(0))).abs().max() > 1e-4


def test_noise_may_come_from_a_function_of_the_step(net):
    x, asked = image(), []
    shape = net.autoencoder.encode(x).shape

    def noise(step):
        asked.append(step)
        return torch.randn(shape, generator=generator(step))

    first = net.sample(x, steps=3, noise=noise)
    assert asked == [0, 1]  # none in the last step
    assert torch.equal(first, net.sample(x, steps=3, noise=noise))


@pytest.mark.parametrize("process", [{"sampler": "bridge"}, {"sampler": "ddim", "parameterisation": "x0"}])
def test_every_draw_has_the_correction_of_the_mean(randomise, process):
    """So that the refiner takes no part of what was drawn away: draws differ as they do without it."""
    net, x = randomise(build_restorer("tiny", **process), scale=0.05), image()  # of x0, draws stay small

    def drawn(seed):
        return net.sample(x, steps=3, generator=generator(seed))

    with_it = [drawn(0), drawn(1)]
    net.use_refiner = False
    without = [drawn(0), drawn(1)]
    correction, rounding = with_it[0] - without[0], 2e-6 * max(float(with_it[0].abs().max()), 1)
    assert correction.abs().max() > 100 * rounding
    torch.testing.assert_close(correction, with_it[1] - without[1], atol=rounding, rtol=0)
    mean = net(x)
    net.use_refiner = True
    torch.testing.assert_close(correction, net(x) - mean, atol=rounding, rtol=0)


def test_the_bridge_evaluates_its_first_step_once_and_again_where_a_draw_was_broken_off(net):
    x, seen = image(), []
    net.denoiser.register_forward_hook(lambda module, inputs, output: seen.append(float(inputs[2][0])))
    draw = net.sample(x, steps=4, generator=generator(0))
    assert seen == [1.0, 0.75, 0.5, 0.25]
    seen.clear()
    state, noise = (), generator(0)
    shape = net.latent_shape(x)
    for part in (range(0, 3), range(3, 4)):
        state = net.advance(x, state, part=part, steps=4, noise=lambda _: torch.randn(shape, generator=noise))
    assert seen == [1.0, 0.75, 0.5, 0.25, 1.0]
    torch.testing.assert_close(state[0], draw, atol=1e-6, rtol=0)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("parameterisation", ["epsilon", "v", "x0"])
def test_gaussian_processes_restore_and_sample_too(randomise, sampler, parameterisation):
    net = randomise(build_restorer("tiny", sampler=sampler, parameterisation=parameterisation), scale=0.01)
    x = image((1, 1, 20, 24, 2))
    for y in (net(x), net.sample(x, steps=2, generator=generator(0))):
        assert y.shape == x.shape
        assert torch.isfinite(y).all()


# Tiles. Nothing may depend on more than a neighbourhood, whose reach the gradient of one block of outputs shows.


def reach(net: Restorer, shape: tuple[int, ...], axis: int) -> int:
    """How many voxels beyond a block in the middle its outputs can see, along an axis; D is axis 4."""
    x = image(shape).requires_grad_()
    size, width = shape[axis], net.multiple if axis < 4 else 1
    start = size // 2 // width * width
    with torch.enable_grad():
        net(x, None, levels(x)).narrow(axis, start, width).sum().backward()
    seen = x.grad.abs().movedim(axis, 0).flatten(1).sum(1).nonzero()
    assert 0 < seen.min() and seen.max() < size - 1, "the whole volume is seen"
    return int(max(start - seen.min(), seen.max() - (start + width - 1)))


@pytest.mark.parametrize(
    ("shape", "axis"), [((1, 1, 480, 16, 1), 2), ((1, 1, 16, 480, 1), 3), ((1, 1, 16, 16, 128), 4)]
)
def test_the_inside_of_a_tile_is_the_part_of_the_whole(net, shape, axis):
    margin = reach(net, shape, axis)
    if axis < 4:
        margin = -(-margin // net.multiple) * net.multiple
    size = shape[axis]
    assert 2 * margin < size * 0.9
    x = image(shape)
    level = levels(x) + torch.arange(shape[4])
    whole = net(x, SPACING, level)
    start, length = (size // 4 // net.multiple * net.multiple, 3 * size // 4)
    tile_level = level.narrow(1, start, length) if axis == 4 else level
    tile = net(x.narrow(axis, start, length), SPACING, tile_level)
    inside = length - margin  # the tile ends where the volume does: only its beginning is cut
    torch.testing.assert_close(
        tile.narrow(axis, margin, inside), whole.narrow(axis, start + margin, inside), atol=2e-5, rtol=1e-5
    )
    assert (tile.narrow(axis, 0, 1) - whole.narrow(axis, start, 1)).abs().max() > 1e-4  # at the cut it differs


# Measuring.


def pairs(noise_hu: float = 25.0, shape=(6, 1, 32, 32, 3)):
    clean = 1000 * image(shape)
    return clean + noise_hu * torch.randn(shape, generator=generator(5)), clean, torch.full((6, 3), noise_hu)


def test_measuring_whitens_latents_and_gives_targets_of_unit_size(net):
    degraded, clean, level = pairs()
    assert not net.measured
    net.measure(degraded, clean, level)
    assert net.measured
    assert float(net.noise_reference_hu) == pytest.approx(25.0)
    z = net.autoencoder.encode(net.units.from_hu(clean))
    flat = z.transpose(0, 1).flatten(1)
    torch.testing.assert_close(flat.mean(1), torch.zeros(16), atol=1e-3, rtol=0)
    torch.testing.assert_close(flat.std(1), torch.ones(16), atol=1e-3, rtol=0)
    conditions = net.conditions(net.units.from_hu(degraded), None, level)
    t = torch.ones(6)
    target = net.process.target(z, conditions.latent, t, torch.zeros_like(z), conditions.spread)
    torch.testing.assert_close(target.transpose(0, 1).flatten(1).std(1), torch.ones(16), atol=1e-3, rtol=0)


def test_the_spread_follows_the_noise_of_each_slice():
    net = build_restorer("tiny").eval()
    net.measure(*pairs())
    x = image((1, 1, 32, 32, 3))
    spread = net.conditions(x, None, torch.tensor([[25.0, 50.0, 12.5]])).spread
    assert spread.shape == (1, 16, 1, 1, 3)
    torch.testing.assert_close(spread[..., 1], 2 * spread[..., 0])
    torch.testing.assert_close(spread[..., 2], spread[..., 0] / 2)
    # White noise of 25 HU is 25 HU in every channel of an orthonormal basis.
    raw = spread[0, :, 0, 0, 0] * net.autoencoder.latent_std * 1000
    torch.testing.assert_close(raw, torch.full((16,), 25.0), rtol=0.1, atol=0)


def test_measuring_again_gives_the_same_and_travels_with_the_weights(net):
    net.measure(*pairs())
    names = ("latent_spread", "noise_reference_hu", "measured", "autoencoder.latent_mean", "autoencoder.latent_std")
    first = {name: net.state_dict()[name].clone() for name in names}
    net.measure(*pairs())
    loaded = build_restorer("tiny").eval()
    loaded.load_state_dict(net.state_dict())
    for name, value in first.items():
        assert torch.equal(net.state_dict()[name], value)
        assert torch.equal(loaded.state_dict()[name], value)
    assert torch.equal(loaded(image()), net(image()))


def test_measuring_moves_no_weight(net):
    before = [parameter.clone() for parameter in net.parameters()]
    net.measure(*pairs())
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_noise_outside_any_scan_is_bounded(net):
    x = image()
    for value in (0.0, 1e6):
        assert torch.isfinite(net(x, None, levels(x, value))).all()


# Training and export.


@pytest.mark.parametrize("group", ["unet", "vae_encoder", "vae_decoder", "refiner"])
def test_gradient_reaches_all_parameters_of_the_trained_group(net, group):
    for name, parameters in net.groups().items():
        for parameter in parameters:
            parameter.requires_grad_(name == group)
    x = image()
    restored = net(x, SPACING, levels(x))
    # The latent's width and the decoder's last bias cancel in a restoration; the autoencoder's own loss moves them.
    own = net.reconstruct(x).square().mean() + net.autoencoder.distribution(x)[1].mean()
    loss = restored.square().mean() + own
    loss.backward()
    for name, parameters in net.groups().items():
        for parameter in parameters:
            assert (parameter.grad is not None and bool(parameter.grad.any())) == (name == group)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of sizes, which a trace fixes
def test_forward_can_be_traced(net):
    example = image((1, 1, 16, 24, 2))
    traced = torch.jit.trace(net, (example, SPACING, levels(example)), check_trace=False)
    x = image((1, 1, 16, 24, 2), seed=3)
    spacing, level = torch.tensor([[0.5, 0.5, 1.0]]), levels(x, 12.0)
    torch.testing.assert_close(traced(x, spacing, level), net(x, spacing, level), atol=1e-6, rtol=1e-6)


def test_forward_can_be_exported(net):
    example = image((1, 1, 16, 24, 2))
    exported = torch.export.export(net, (example, SPACING, levels(example))).module()
    x = image((1, 1, 16, 24, 2), seed=3)
    spacing, level = torch.tensor([[0.5, 0.5, 1.0]]), levels(x, 12.0)
    torch.testing.assert_close(exported(x, spacing, level), net(x, spacing, level), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("convert", [torch.jit.script, torch.jit.trace])
def test_torchscript_equals_the_network_at_every_shape(convert, net):
    # `script` is what the model zoo's check calls: MONAI's ckpt_export without use_trace.
    example = () if convert is torch.jit.script else (image((1, 1, 48, 48, 4)),)
    stored = io.BytesIO()
    torch.jit.save(convert(net, *example), stored)
    stored.seek(0)
    loaded = torch.jit.load(stored)
    for x in (image((1, 1, 48, 48, 4)), 3 * image((1, 1, 61, 50, 3)), image((2, 1, 96, 40, 1), seed=2)):
        restored = net(x)  # the noise is estimated anew, the padding is the input's own
        assert (restored - x).abs().max() > 0.01
        torch.testing.assert_close(loaded(x), restored)
