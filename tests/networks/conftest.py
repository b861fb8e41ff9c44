import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small lose more than they win by threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def randomise():
    """Adds noise to all weights of a network, in place: fresh ones hold zeros that hide what is behind them."""

    def apply(net: torch.nn.Module, *, scale: float = 0.02, seed: int = 0) -> torch.nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
        return net.eval()

    return apply
