"""Statistics pooled over windows are those of the windows together, and a network is left as it was."""

import pytest
import torch
from torch import nn

from bundle.networks.shared_norms import SharedNorms

X = torch.randn(1, 6, 8, 5, 4, generator=torch.Generator().manual_seed(0)) * 7 + 3
X[:, :, 5:] += 100.0  # a bone, of which most windows know nothing


def random_norm(**options) -> nn.GroupNorm:
    norm = nn.GroupNorm(3, 6, **options)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


@pytest.mark.parametrize("affine", [True, False])
def test_windows_of_any_size_together_give_the_norm_of_the_whole(affine):
    norm = random_norm(affine=affine)
    shared, windows = SharedNorms([norm]), X.split([2, 5, 1], dim=2)
    for window in windows:
        with shared.gathering():
            assert torch.equal(norm(window), nn.GroupNorm.forward(norm, window))
    with shared.applied():
        found = norm(windows[0])
    torch.testing.assert_close(found, norm(X)[:, :, :2], atol=1e-5, rtol=1e-5)
    assert (found - norm(windows[0])).abs().mean() > 0.1  # which a window by itself does not


def test_rows_that_a_network_makes_of_a_window_keep_apart():
    """As where two latents are decoded at once: the statistics of one must not enter the other's."""
    norm = random_norm()
    shared = SharedNorms([norm])

    def difference(windows: torch.Tensor) -> torch.Tensor:
        one, other = norm(torch.cat([windows, 9 * windows.square()])).chunk(2)
        return one - other

    expected = difference(X)
    for window in X.split([2, 6], dim=2):
        with shared.gathering():
            difference(window)
    with shared.applied():
        torch.testing.assert_close(difference(X), expected, atol=1e-4, rtol=1e-4)
        batch = torch.cat([X, X.flip(2)])
    with shared.applied():
        torch.testing.assert_close(difference(batch), torch.cat([expected, expected.flip(2)]), atol=1e-4, rtol=1e-4)


def test_each_call_of_a_pass_has_its_own_statistics():
    norm = random_norm()
    shared = SharedNorms([norm])
    for _ in range(2):
        with shared.gathering():
            norm(X), norm(X * 9)
    with shared.applied():
        for scale in (1, 9):
            torch.testing.assert_close(norm(X * scale), norm.__class__.forward(norm, X * scale), atol=1e-5, rtol=1e-5)


def test_norms_of_one_network_are_told_apart():
    first, second = random_norm(), random_norm()
    network = nn.Sequential(first, nn.Conv3d(6, 6, 1), second)
    shared = SharedNorms([first, second])
    with shared.gathering():
        network(X)
    expected = network(X)
    with shared.applied():
        torch.testing.assert_close(network(X), expected, atol=1e-5, rtol=1e-5)


def test_the_network_is_left_as_it_was_also_after_an_error():
    norm = random_norm()
    shared = SharedNorms([norm])
    expected, state = norm(X), set(vars(norm))
    with shared.applied():  # nothing was gathered
        assert torch.equal(norm(X), expected)
    with pytest.raises(RuntimeError), shared.gathering():
        norm(X[:, :1])
    assert set(vars(norm)) == state and torch.equal(norm(X), expected)


def test_half_precision_stays_and_is_computed_in_float32():
    norm = random_norm().bfloat16()
    shared = SharedNorms([norm])
    with shared.gathering():
        norm(X.bfloat16())
    with shared.applied():
        found = norm(X.bfloat16())
    assert found.dtype == torch.bfloat16
    exact = nn.GroupNorm.forward(norm.float(), X.bfloat16().float())
    assert (found.float() - exact).abs().max() <= exact.abs().max() / 256  # half a unit of its last place


def test_none_is_false():
    assert not SharedNorms() and SharedNorms([random_norm()])
