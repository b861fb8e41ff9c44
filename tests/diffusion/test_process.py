import inspect

import pytest
import torch

from bundle.diffusion.bridge import BrownianBridge
from bundle.diffusion.gaussian import GaussianDiffusion
from bundle.diffusion.process import DiffusionProcess, check_steps, per_sample

METHODS = ("sample_times", "corrupt", "target", "to_clean", "restore", "start", "advance")


@pytest.mark.parametrize("kind", [BrownianBridge, GaussianDiffusion])
@pytest.mark.parametrize("method", METHODS)
def test_processes_take_what_the_protocol_says(kind, method):
    ours = inspect.signature(getattr(kind, method))
    stated = inspect.signature(getattr(DiffusionProcess, method))
    assert [(p.name, p.kind, p.default) for p in ours.parameters.values()] == [
        (p.name, p.kind, p.default) for p in stated.parameters.values()
    ]


@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 4, 5, 6)])
def test_times_broadcast_over_everything_but_the_batch(shape):
    t = torch.tensor([0.0, 0.5, 1.0])
    like = torch.ones(shape, dtype=torch.float64)
    shaped = per_sample(t, like)
    assert shaped.dtype == like.dtype
    product = shaped * like
    assert product.shape == shape
    for sample, time in zip(product, t, strict=True):
        assert (sample == time).all()


@pytest.mark.parametrize("steps", [1, 2, 50, 1000])
def test_steps_in_range_pass(steps):
    check_steps(steps, most=1000)


@pytest.mark.parametrize(("steps", "most"), [(0, 1000), (-1, 1000), (1001, 1000), (11, 10)])
def test_steps_out_of_range_are_refused_by_name(steps, most):
    with pytest.raises(ValueError, match=f"steps must be between 1 and {most}, not {steps}"):
        check_steps(steps, most=most)
