import pytest
import torch
from training_fixtures import equal

from bundle.training.adversary import Adversary


@pytest.fixture
def volumes():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 1, 32, 32, 3, generator=generator)
    return (image + 0.3 * torch.rand(image.shape, generator=generator)).requires_grad_(), image


def test_its_terms_move_the_reconstruction_and_nothing_of_its_own(volumes):
    decoded, image = volumes
    adversary = Adversary(channels=4)
    terms = adversary.terms(decoded, image)
    sum(terms.values()).backward()
    assert terms.keys() == {"adversarial", "perceptual"} and float(decoded.grad.abs().max()) > 0
    assert all(parameter.grad is None for parameter in adversary.network.parameters())


def test_a_perfect_reconstruction_has_no_perceptual_cost(volumes):
    image = volumes[1]
    assert float(Adversary(channels=4).terms(image.clone(), image)["perceptual"]) == 0


def test_it_learns_to_tell_them_apart(volumes):
    image = volumes[1]
    decoded = torch.nn.functional.avg_pool3d(image, (5, 5, 1), stride=1, padding=(2, 2, 0))  # blurred
    adversary = Adversary(channels=4, learning_rate=2.0e-3)
    adversary.terms(decoded, image)
    for _ in range(30):
        adversary.zero_grad()
        adversary.terms(decoded, image)
        adversary.backward(share=1.0, last=True)
        adversary.update(factor=1.0)
    judged = [float(adversary.network(volume[..., 0])[-1].mean()) for volume in (image, decoded)]
    assert judged[0] > judged[1] + 0.5


def test_its_start_depends_on_its_seed_only_and_draws_nothing_from_the_run(volumes):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b = Adversary(channels=4, seed=1), Adversary(channels=4, seed=1)
    a.terms(*volumes)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(9)
    b.terms(*volumes)
    assert equal(dict(a.network.state_dict()), dict(b.network.state_dict()))


def test_its_state_comes_back(volumes):
    adversary, other = Adversary(channels=4), Adversary(channels=4, seed=9)
    assert adversary.state_dict() is None
    adversary.terms(*volumes)
    adversary.backward(share=1.0, last=True)
    adversary.update(factor=1.0)
    other.load_state_dict(adversary.state_dict(), torch.device("cpu"))
    assert equal(adversary.state_dict(), other.state_dict())
