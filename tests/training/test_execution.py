import copy

import pytest
import torch

from bundle.errors import BundleError
from bundle.networks.acceleration import format_weights
from bundle.networks.presets import build_restorer
from bundle.training.execution import prepare


@pytest.fixture(scope="module")
def restorer():
    torch.manual_seed(0)
    network = build_restorer("tiny")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return network


def gradients(network):
    x = torch.rand(1, 1, 16, 16, 2, generator=torch.Generator().manual_seed(1)).requires_grad_()
    network(x, None, torch.full((1, 2), 20.0)).square().mean().backward()
    return {name: parameter.grad for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("switch", [{"activation_checkpointing": True}, {"compile": "eager"}])
def test_names_values_and_gradients_stay(restorer, switch):
    changed = copy.deepcopy(restorer)
    assert prepare(changed, **switch)
    assert changed.state_dict().keys() == restorer.state_dict().keys()
    expected, found = gradients(copy.deepcopy(restorer)), gradients(changed)
    for name, value in expected.items():
        assert (value is None) == (found[name] is None), name
        assert value is None or torch.allclose(value, found[name], rtol=1e-4, atol=1e-9), name


def test_switches_are_true_or_false(restorer):
    with pytest.raises(BundleError, match="neither true nor false"):
        prepare(copy.deepcopy(restorer), activation_checkpointing="yes")
    with pytest.raises(BundleError, match="compile 'indcutor' is unknown"):
        prepare(copy.deepcopy(restorer), compile="indcutor")


def test_channels_last_changes_no_value(restorer):
    changed = copy.deepcopy(restorer)
    format_weights(changed, torch.channels_last_3d)
    expected, found = gradients(copy.deepcopy(restorer)), gradients(changed)
    assert any(p.is_contiguous(memory_format=torch.channels_last_3d) for p in changed.parameters() if p.ndim == 5)
    # Another order of sums: compared over all parameters, as single gradients nearly cancel.
    flat, other = (torch.cat([g[n].flatten() for n, v in expected.items() if v is not None]) for g in (expected, found))
    assert float((flat - other).norm()) <= 1e-4 * float(flat.norm())
