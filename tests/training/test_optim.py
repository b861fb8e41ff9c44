import copy
import math

import pytest
import torch
from torch import nn

from bundle.networks.presets import build_restorer
from bundle.training.optim import MovingAverage, build_optimizer, clip_by_group, schedule, set_learning_rates
from bundle.training.phases import GROUPS, Phase


@pytest.fixture(scope="module")
def restorer():
    return build_restorer("tiny")


def test_every_parameter_is_in_one_group(restorer):
    optimizer = build_optimizer(restorer, learning_rate=1.0e-3)
    assert [group["name"] for group in optimizer.param_groups] == list(GROUPS)
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in restorer.parameters())


def test_rates_of_groups(restorer):
    optimizer = build_optimizer(restorer, learning_rate=1.0e-3)
    phase = Phase(name="p", epochs=1, multipliers={"unet": 1.0, "vae_encoder": 0.1}, losses={"refined": 1.0})
    set_learning_rates(optimizer, base=2.0e-4, phase=phase, factor=0.5)
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates == pytest.approx({"unet": 1.0e-4, "vae_encoder": 1.0e-5, "vae_decoder": 0, "refiner": 0})


@pytest.mark.parametrize("steps,warmup", [(1000, 100), (1000, 1), (50, 5), (200, 500)])
def test_schedule_rises_in_a_line_and_falls_to_its_end(steps, warmup):
    used = min(warmup, steps // 10)  # a short phase is not all warm-up
    values = [schedule(step, steps=steps, warmup=warmup, final=0.03) for step in range(steps + 1)]
    assert values[:used] == pytest.approx([(step + 1) / used for step in range(used)])
    assert values[used - 1] == values[used] == max(values) == 1
    assert values[-1] == pytest.approx(0.03)
    assert all(a >= b for a, b in zip(values[used:], values[used + 1 :], strict=False))
    middle = used + (steps - used) / 2
    if middle == int(middle):
        assert values[int(middle)] == pytest.approx((1 + 0.03) / 2)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_schedule_of_a_few_steps(steps):
    values = [schedule(step, steps=steps, warmup=100, final=0.03) for step in range(steps + 3)]
    assert all(0.03 - 1e-12 <= value <= 1 for value in values) and values[0] == 1


def test_groups_are_clipped_apart():
    small, large = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
    unused = nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.AdamW([{"params": [small]}, {"params": [large]}, {"params": [unused]}])
    small.grad, large.grad = torch.full((4,), 0.1), torch.full((4,), 500.0)
    assert clip_by_group(optimizer, most=1.0) == pytest.approx(1000.0)
    assert torch.equal(small.grad, torch.full((4,), 0.1))
    assert float(large.grad.norm()) == pytest.approx(1.0, rel=1e-4)
    assert unused.grad is None


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_norm_tells_of_a_gradient_that_is_not_finite(place, value):
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    optimizer = torch.optim.AdamW([{"params": [p]} for p in parameters])
    for p in parameters:
        p.grad = torch.ones(2)
    parameters[place].grad[0] = value
    assert not math.isfinite(clip_by_group(optimizer, most=1.0))


def test_moving_average_formula():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = MovingAverage(net, decay=0.5)
    assert not average.module.training and not any(p.requires_grad for p in average.module.parameters())
    expected = copy.deepcopy(net).state_dict()
    for updates in range(12):
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn_like(p))
            net[1].running_mean.add_(1)
        average.update(net, updates=updates)
        decay = min(0.5, (1 + updates) / (10 + updates))
        for key, p in net.named_parameters():
            expected[key] = decay * expected[key] + (1 - decay) * p.detach()
    for key, p in average.module.named_parameters():
        assert torch.allclose(p, expected[key], atol=1e-6)
    assert torch.equal(average.module[1].running_mean, net[1].running_mean)  # buffers are copied


def test_moving_average_of_what_stands_still():
    net = nn.Linear(3, 2)
    average = MovingAverage(net, decay=0.999)
    for updates in range(5):
        average.update(net, updates=updates)
    assert torch.equal(average.module.weight, net.weight)
    assert average.module.weight.data_ptr() != net.weight.data_ptr()
