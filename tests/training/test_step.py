import copy

import pytest
import torch
import yaml
from training_fixtures import ROOT, prepare

from bundle.data.patches import PatchDataset
from bundle.data.splits import Part
from bundle.degrade.composition import DegradationSampling
from bundle.networks.precision import Precision
from bundle.networks.presets import build_restorer
from bundle.training.phases import Phase
from bundle.training.step import TrainingStep

FLOAT32 = Precision("cpu", None)


def phases():
    """The three phases of configs/train.yaml, references resolved by hand."""
    config = yaml.safe_load((ROOT / "configs" / "train.yaml").read_text())
    unrefined = config["denoiser_losses"]["tiny"]
    autoencoder, denoiser, joint = config["phases"]
    autoencoder["losses"] = {"reconstruction": 1.0, "kl": 1.0e-7, "adversarial": 0.0, "perceptual": 0.0}
    denoiser["losses"] = unrefined
    joint["losses"] = {**unrefined, "refined": 1.0, "reconstruction": 1.0}
    joint["multipliers"] = config["layer_lr_multipliers"]
    return {
        fields["name"]: Phase(**{**fields, "epochs": 1, "steps": None}) for fields in (autoencoder, denoiser, joint)
    }


PHASES = phases()
TERMS = {
    "autoencoder": {"reconstruction", "kl"},
    "denoiser": {"unrefined"},
    "joint": {"unrefined", "refined", "reconstruction"},
}


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    parts = [Part.whole(case) for case in prepare(tmp_path_factory.mktemp("cases"), ["a", "b"])]
    sampling = DegradationSampling(clean_fraction=0.0, dose_range=(0.1, 0.3))
    data = PatchDataset(parts, patch_size=32, num_slices=4, length=4, seed=0, degradation=sampling)
    items = [data[index] for index in range(3)]
    return {key: torch.stack([item[key] for item in items]) for key in items[0]}


@pytest.fixture(scope="module")
def trained(batch):
    """A tiny network whose every weight is off its start, where many gradients are zero."""
    torch.manual_seed(0)
    restorer = build_restorer("tiny")
    restorer.measure(batch["image"], batch["label"], batch["noise_level"])
    with torch.no_grad():
        for parameter in restorer.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return restorer


def gradients(restorer, batch, phase, precision=FLOAT32):
    step = TrainingStep(copy.deepcopy(restorer), precision=precision)
    step.set_phase(PHASES[phase] if isinstance(phase, str) else phase)
    torch.manual_seed(1)
    losses = step(batch)
    losses["loss"].backward()
    return losses, step


@pytest.mark.parametrize("phase", PHASES)
def test_terms_of_each_phase(trained, batch, phase):
    losses, _ = gradients(trained, batch, phase)
    assert losses.keys() == TERMS[phase] | {"loss"}
    assert all(torch.isfinite(term) and term.ndim == 0 for term in losses.values())
    weights = PHASES[phase].losses
    total = sum(weights[name] * losses[name].item() for name in TERMS[phase])
    assert float(losses["loss"]) == pytest.approx(total, rel=1e-5)
    assert losses["loss"].dtype == torch.float32


@pytest.mark.parametrize("precision", [FLOAT32, Precision("cpu", torch.bfloat16)], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("phase", PHASES)
def test_what_trains_has_gradients_and_what_is_frozen_has_none(trained, batch, phase, precision):
    """In particular after a pass without gradients inside the same autocast region (findings of older torch)."""
    _, step = gradients(trained, batch, phase, precision)
    for group, parameters in step.restorer.groups().items():
        for parameter in parameters:
            assert parameter.requires_grad == (group in PHASES[phase].trains)
            assert (parameter.grad is not None) == (group in PHASES[phase].trains)
            if parameter.grad is not None:
                assert torch.isfinite(parameter.grad).all()
    for group in PHASES[phase].trains:
        moved = [float(p.grad.abs().max()) > 0 for p in step.restorer.groups()[group]]
        assert all(moved), f"{group}: {moved.count(False)} parameters without any gradient"


@pytest.mark.parametrize("phase", PHASES)
def test_bfloat16_gradients_point_where_float32_ones_do(trained, batch, phase):
    (exact, a), (rounded, b) = (
        gradients(trained, batch, phase, precision) for precision in (FLOAT32, Precision("cpu", torch.bfloat16))
    )
    assert float(rounded["loss"]) == pytest.approx(float(exact["loss"]), rel=0.05)
    for group in PHASES[phase].trains:
        flat = [torch.cat([p.grad.flatten() for p in step.restorer.groups()[group]]) for step in (a, b)]
        cosine = torch.nn.functional.cosine_similarity(*flat, dim=0)
        assert float(cosine) > 0.99, f"{group}: {float(cosine):.5f}"


def test_a_phase_change_freezes_and_forgets(trained, batch):
    _, step = gradients(trained, batch, "joint")
    step.set_phase(PHASES["denoiser"])
    for group, parameters in step.restorer.groups().items():
        assert all((p.grad is not None) == (group == "unet") for p in parameters)
    step.set_phase(PHASES["joint"])
    assert all(p.requires_grad for p in step.restorer.parameters())


def test_no_dead_parameters(trained):
    grouped = [p for parameters in trained.groups().values() for p in parameters]
    assert {id(p) for p in grouped} == {id(p) for p in trained.parameters()}


def test_noise_is_the_only_chance(trained, batch):
    first, _ = gradients(trained, batch, "joint")
    again, _ = gradients(trained, batch, "joint")
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("sampler,fractions", [("bridge", {0.0, 1.0}), ("ddim", set())])
def test_a_phase_chooses_how_much_stands_at_the_start(batch, monkeypatch, sampler, fractions):
    step = TrainingStep(build_restorer("tiny", sampler=sampler), precision=FLOAT32)
    own, seen = type(step.restorer.process), {}
    draw = own.sample_times
    monkeypatch.setattr(own, "sample_times", lambda self, n: seen.setdefault(self, draw(self, n)))
    fields = {"name": "p", "epochs": 1, "multipliers": {"unet": 1.0}, "losses": {"target": 1.0}}
    for fraction in (0.0, 1.0, None):
        step.set_phase(Phase(**fields, start_fraction=fraction))
        step(batch)
    assert step.restorer.process in seen  # None, or a process without such an end: its own
    drawn = {process.start_fraction: times for process, times in seen.items() if process != step.restorer.process}
    assert set(drawn) == fractions
    assert all((times == 1).all() == (fraction == 1) for fraction, times in drawn.items())


def test_untrained_reconstruction_loss_is_that_of_an_identity(batch):
    """The lossless start: only the latent's own small noise is left."""
    losses, _ = gradients(build_restorer("tiny"), batch, "autoencoder")
    assert float(losses["reconstruction"]) < 0.02


@pytest.mark.parametrize("sampler", ["ddim"])
def test_gaussian_diffusion_trains_on_its_target(batch, sampler):
    torch.manual_seed(0)
    step = TrainingStep(build_restorer("tiny", sampler=sampler), precision=FLOAT32)
    step.set_phase(Phase(name="p", epochs=1, multipliers={"unet": 1.0}, losses={"target": 1.0}))
    losses = step(batch)
    assert losses.keys() == {"target", "loss"} and float(losses["target"]) == pytest.approx(1.0, rel=0.2)


def test_a_frozen_denoiser_changes_nothing_for_the_refiner(trained, batch, monkeypatch):
    """Without a graph of what does not learn, losses and gradients of the refiner are the same."""
    phase = Phase(
        name="refiner", epochs=1, steps=None, multipliers={"refiner": 1.0}, losses={"refined": 1.0}, start_fraction=1.0
    )
    found, step = gradients(trained, batch, phase)
    monkeypatch.setattr(TrainingStep, "_latents_learn", lambda self: True)
    expected, recorded = gradients(trained, batch, phase)
    torch.testing.assert_close(found["refined"], expected["refined"], rtol=1e-5, atol=1e-7)
    for weight, other in zip(step.restorer.refiner.parameters(), recorded.restorer.refiner.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, other.grad, rtol=1e-3, atol=1e-5)
