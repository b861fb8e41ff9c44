"""The trainer alone: steps that are skipped, accumulated batches, noise of an iteration."""

import copy
import math

import pytest
import torch
from ignite.engine import Events
from training_fixtures import equal, prepare

from bundle.data.patches import PatchDataset
from bundle.data.splits import Part
from bundle.errors import BundleError
from bundle.networks.precision import Precision
from bundle.networks.presets import build_restorer
from bundle.training.optim import MovingAverage, build_optimizer
from bundle.training.phases import PhasePlan
from bundle.training.step import TrainingStep
from bundle.training.trainer import BundleTrainer


class Poisoned(PatchDataset):
    """Items whose image is NaN, by (epoch, index)."""

    poison = frozenset()

    def __getitem__(self, position):
        item = super().__getitem__(position)
        if position in self.poison:
            item["image"][:] = math.nan
        return item


@pytest.fixture(scope="module")
def part(tmp_path_factory):
    return Part.whole(prepare(tmp_path_factory.mktemp("cases"), size=32, slices=8)[0])


def make_trainer(part, *, length=8, poison=(), epochs=1, **settings):
    torch.manual_seed(0)
    restorer = build_restorer("tiny")
    step = TrainingStep(restorer, precision=Precision("cpu", None))
    data = Poisoned([part], patch_size=16, num_slices=2, length=length, seed=0)
    data.poison = frozenset(poison)
    phase = {"name": "p", "epochs": epochs, "multipliers": {"unet": 1.0}, "losses": {"unrefined": 1.0}}
    trainer = BundleTrainer(
        step,
        average=MovingAverage(restorer, decay=0.9),
        optimizer=build_optimizer(restorer, learning_rate=1.0e-3),
        plan=PhasePlan([phase]),
        dataset=data,
        batch_size=1,
        device="cpu",
        seed=0,
        learning_rate=1.0e-3,
        **settings,
    )
    moved = []
    last = copy.deepcopy(restorer.denoiser.state_dict())

    def note(_):
        nonlocal last
        now = copy.deepcopy(restorer.denoiser.state_dict())
        moved.append(not equal(dict(last), dict(now)))
        last = now

    trainer.add_event_handler(Events.ITERATION_COMPLETED, note)
    return trainer, moved


def test_a_step_without_a_finite_loss_is_skipped(part):
    trainer, moved = make_trainer(part, poison={(0, 2), (0, 5)})
    trainer.run()
    assert moved == [True, True, False, True, True, False, True, True]
    assert all(torch.isfinite(p).all() for p in trainer.average.module.parameters())


@pytest.mark.parametrize("index", [2, 3])
def test_an_accumulated_step_is_skipped_whole(part, index):
    """Whether the first or the last of its batches is bad; half of a step would have half of its size."""
    trainer, moved = make_trainer(part, poison={(0, index)}, accumulation_steps=2)
    trainer.run()
    assert moved == [False, True, False, False, False, True, False, True]


def test_accumulation_ends_with_the_epoch(part):
    trainer, moved = make_trainer(part, length=5, accumulation_steps=2, epochs=2)
    trainer.run()
    assert moved == [False, True, False, True, True] * 2


def test_accumulated_batches_are_one_large_batch(part):
    """Gradients of mean losses, apart from the noise, which depends on the iteration: compared with drawn ones."""
    trainer, _ = make_trainer(part, length=2, accumulation_steps=2)
    found = {}
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=2),
        lambda e: found.update({n: p.grad.clone() for n, p in e.restorer.denoiser.named_parameters()}),
    )
    parts = []
    trainer.clip_norm = math.inf

    def forward(step, inputs, output):
        parts.append(torch.autograd.grad(output["loss"], list(step.restorer.denoiser.parameters()), retain_graph=True))

    trainer.step.register_forward_hook(forward)
    trainer.run()
    assert len(parts) == 2
    for gradient, *each in zip(found.values(), *parts, strict=True):
        assert torch.allclose(gradient, sum(each) / 2, rtol=1e-4, atol=1e-8)


def test_a_gradient_that_is_not_finite_is_skipped_too(part):
    """A finite loss with an infinite gradient would turn every weight into NaN."""
    trainer, moved = make_trainer(part)
    parameter = next(iter(trainer.restorer.denoiser.parameters()))
    parameter.register_hook(lambda grad: grad * math.inf if trainer.state.iteration in (3, 6) else grad)
    trainer.run()
    assert moved == [True, True, False, True, True, False, True, True]
    assert all(torch.isfinite(p).all() for p in trainer.restorer.parameters())


def test_nothing_but_bad_steps_ends_the_run(part):
    trainer, moved = make_trainer(part, poison={(0, index) for index in range(2, 8)}, max_skipped=3)
    with pytest.raises(
        BundleError, match=r"not finite in 3 steps in a row, until iteration 5; .*series: key-one .*learning_rate"
    ):
        trainer.run()
    assert moved == [True, True, False, False]


def test_bad_steps_apart_do_not_end_the_run(part):
    trainer, _ = make_trainer(part, poison={(0, 1), (0, 2), (0, 4), (0, 5)}, max_skipped=3)
    trainer.run()
    assert trainer.state.iteration == 8


def test_noise_of_an_iteration_does_not_depend_on_what_came_before(part):
    drawn = []
    for waste in (0, 3):
        trainer, _ = make_trainer(part, length=2)
        trainer.add_event_handler(Events.ITERATION_STARTED, lambda _, waste=waste: torch.randn(waste))
        losses_of_run = []
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED, lambda e, seen=losses_of_run: seen.append(e.state.output["loss"])
        )
        trainer.run()
        drawn.append(losses_of_run)
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 2


def test_max_epochs_ends_before_the_plan(part):
    trainer, _ = make_trainer(part, length=2, epochs=5, max_epochs=2)
    trainer.run()
    assert trainer.state.iteration == 4
