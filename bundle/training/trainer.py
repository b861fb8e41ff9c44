"""The trainer: MONAI's SupervisedTrainer with one step of ours, phases, and everything that a resume needs."""

import contextlib
import logging
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from monai.handlers import MLFlowHandler
from monai.inferers import Inferer
from monai.utils import CommonKeys
from torch.utils.data import DataLoader

from bundle.data.patches import MEASURING, PatchDataset
from bundle.data.samplers import ResumableBatchSampler
from bundle.errors import BundleError
from bundle.networks.acceleration import format_weights
from bundle.networks.restorer import Restorer
from bundle.training import distributed
from bundle.training.limits import require_trainable_patch
from bundle.training.optim import MovingAverage, clip_by_group, schedule, set_learning_rates
from bundle.training.phases import Phase, PhasePlan, Span
from bundle.training.step import TrainingStep

logger = logging.getLogger(__name__)

_MEASURE_PATCHES = 24  # training patches from which the latent's scale is measured


class BundleTrainer(SupervisedTrainer):
    """Trains a Restorer through the phases of a plan, in one process or in several.

    Learning rates, phase, noise and data are functions of (seed, iteration); what has to be saved is weights,
    their average, the optimizer, the scaler and the iteration. Several processes see together what one process
    with their batches joined would see.

    Args:
        step: the training step around the Restorer.
        average: moving average of the Restorer's weights; what inference loads.
        optimizer: built by training.optim.build_optimizer.
        plan: the phases.
        dataset: patches.
        batch_size: patches per step and process.
        device: where to train.
        seed: of noise and data.
        learning_rate: base rate.
        warmup_steps: steps of linear warm-up at the start of each phase.
        schedule_name: how the rate falls after that (see optim.SCHEDULES).
        final_rate: factor that the schedule ends at.
        clip_norm: largest gradient norm of each parameter group.
        accumulation_steps: batches per optimizer step.
        num_workers: of the data loader.
        max_skipped: non-finite optimizer steps in a row that stop the run.
        channels_last: keep weights and batches in the memory format of that name.
        train_handlers: MONAI or Ignite handlers.
        inferer: calls the training step; MONAI's SimpleInferer.
        max_epochs: ends the run before the plan does; None runs the whole plan.
    """

    def __init__(
        self,
        step: TrainingStep,
        *,
        average: MovingAverage,
        optimizer: torch.optim.Optimizer,
        plan: PhasePlan,
        dataset: PatchDataset,
        batch_size: int,
        device: torch.device | str,
        seed: int,
        learning_rate: float,
        warmup_steps: int = 100,
        schedule_name: str = "cosine",
        final_rate: float = 0.03,
        clip_norm: float = 1.0,
        accumulation_steps: int = 1,
        num_workers: int = 0,
        max_skipped: int = 20,
        channels_last: bool = False,
        train_handlers: Sequence[Any] | None = None,
        inferer: Inferer | None = None,
        max_epochs: int | None = None,
    ) -> None:
        require_trainable_patch(dataset.patch, step)
        self.plan = plan
        self.seed = seed
        self.base_rate = learning_rate
        self.warmup_steps = warmup_steps
        self.schedule_name = schedule_name
        self.final_rate = final_rate
        self.clip_norm = clip_norm
        self.max_skipped = max_skipped
        self.skipped_steps = 0  # in a row
        self.skipped_total = 0
        self.epochs_done = 0  # epochs whose validation and checkpoint are done too
        self.at_exit = contextlib.ExitStack()  # what handlers undo, however the run ends
        self.stop_asked = threading.Event()
        self.stop_agreed = False  # by all processes, at the end of a step
        self._finite = True  # so far in this optimizer step
        self._not_finite: list[int] = []  # iterations of it whose loss was not finite in this process
        self._phase_number = -1
        self.dataset = dataset
        self.batch_size = batch_size
        world, rank = distributed.world_size(), distributed.rank()
        self.begun_by_weights = False  # of another run's checkpoint
        self.begun_with = world  # processes; a checkpoint brings its own number
        self.sampler = _sampler(len(dataset), batch_size, rank, world)
        self._memory_format = torch.channels_last_3d if channels_last else torch.preserve_format
        device = torch.device(device)
        step.to(device)
        format_weights(step, self._memory_format)
        self.average = average
        average.module.to(device)
        super().__init__(
            device=device,
            max_epochs=max_epochs or math.ceil(plan.total(len(self.sampler)) / len(self.sampler)),
            train_data_loader=_loader(dataset, self.sampler, num_workers),
            network=step,
            optimizer=optimizer,
            loss_function=_no_loss,
            inferer=inferer,
            optim_set_to_none=True,
            accumulation_steps=accumulation_steps,
            decollate=False,
        )
        self.step = step  # `network` is the same, in DDP where there are several processes
        # Ignite would say each start, epoch and error a second time, in its own words.
        self.logger.setLevel(logging.CRITICAL)
        self.loss_scaler = torch.amp.GradScaler(device.type, enabled=step.precision.needs_scaler)
        # These run first: handlers given from outside, such as the one that loads a checkpoint, come before the
        # data position is read off the iteration, because STARTED handlers run in the order they were added.
        for handler in train_handlers or ():
            if isinstance(handler, MLFlowHandler):  # what `--tracking mlflow` adds expects a decollated list
                handler.output_transform = _losses_by_name
            handler.attach(self)
        self.add_event_handler(Events.STARTED, _go_to_data_position)
        self.add_event_handler(Events.STARTED, _finish_epoch)
        self.add_event_handler(Events.EPOCH_STARTED, _enter_epoch)
        self.add_event_handler(Events.EPOCH_COMPLETED, _leave_epoch)

    @property
    def restorer(self) -> Restorer:
        """The networks in training."""
        return self.step.restorer

    @property
    def epoch_length(self) -> int:
        """Iterations of an epoch."""
        return cast(int, self.state.epoch_length)

    @property
    def total(self) -> int:
        """Iterations of the whole plan."""
        return self.plan.total(self.epoch_length)

    @property
    def phase(self) -> Phase:
        """Phase of the current iteration."""
        return self.plan.at(max(self.state.iteration - 1, 0), self.epoch_length).phase

    @property
    def between_updates(self) -> bool:
        """Whether no gradient waits for an optimizer step: only then is a checkpoint the whole state."""
        return self._accumulation(self.state.iteration - 1)[1]

    def run(self) -> None:  # type: ignore[override]
        """Train to the end of the plan, or to where a handler stops it.

        Raises:
            InterruptedRun: also when another process of the run is lost.
        """
        self.at_exit.callback(self._unwrap)  # DDP would keep the process group alive (see `distributed.start`)
        with self.at_exit, distributed.lost_process():
            super().run()

    def _iteration(self, engine: Engine, batchdata: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        iteration = self.state.iteration - 1
        factor = self._set_rates(self._enter_phase(iteration), iteration)
        first, last = self._accumulation(iteration)
        self.network.train()
        if first:
            self.optimizer.zero_grad(set_to_none=True)
            self.step.adversary.zero_grad()
            self._finite = True
            self._not_finite = []
        losses = self._agree(self._backward(batchdata, iteration, last=last))
        norm = self._update(factor) if last and self._finite else 0.0
        if last:
            self._count_skipped()
        if self.state.iteration == self.total and self.total % self.epoch_length:
            self.terminate_epoch()  # a plan in steps may end within an epoch
        return {CommonKeys.LOSS: losses["loss"], "norm": norm, **losses}

    def _backward(self, batchdata: Mapping[str, torch.Tensor], iteration: int, *, last: bool) -> dict[str, float]:
        """Add the gradients of a batch; return its losses."""
        sampler = self.sampler
        batch = {key: value.to(self.state.device, non_blocking=True) for key, value in batchdata.items()}
        found: dict[str, float] = {}
        for offset, count, piece in _pieces(batch, self.batch_size):
            torch.manual_seed(_mix(self.seed, iteration))
            self.step.place = (sampler.rank * sampler.batch_size + offset, sampler.world_size * sampler.batch_size)
            share = count / sampler.batch_size
            synchronise = last and offset + count == sampler.batch_size
            with contextlib.nullcontext() if synchronise else distributed.synchronised_later(self.network):
                losses = cast(dict[str, torch.Tensor], self.inferer(cast(Any, self._formatted(piece)), self.network))
                total = losses["loss"]
                finite = bool(torch.isfinite(total))
                if not finite:
                    self._finite = False
                    self._not_finite.append(iteration)
                # Alone, a hopeless gradient is not computed; among several, the others wait for it.
                if self._finite or sampler.world_size > 1:
                    self.loss_scaler.scale(total * (share / self.accumulation_steps)).backward()
                    self.step.adversary.backward(share=share / self.accumulation_steps, last=synchronise)
            for name, value in losses.items():
                found[name] = found.get(name, 0.0) + value.item() * share
        return found

    def _agree(self, losses: dict[str, float]) -> dict[str, float]:
        """Exchange with the other processes: mean losses, whether they are finite, whether to stop."""
        if self.sampler.world_size == 1:
            self.stop_agreed = self.stop_asked.is_set()
            return losses
        *values, asked = distributed.mean([*losses.values(), float(self.stop_asked.is_set())])
        self.stop_agreed = asked > 0
        self._finite = self._finite and all(map(math.isfinite, values))
        return dict(zip(losses, values, strict=True))

    def _update(self, factor: float) -> float:
        self.loss_scaler.unscale_(self.optimizer)
        norm = clip_by_group(self.optimizer, most=self.clip_norm)
        if not self.loss_scaler.is_enabled() and not math.isfinite(norm):  # the scaler looks for itself
            self._finite = False
            return norm
        self.loss_scaler.step(self.optimizer)
        self.loss_scaler.update()
        self.step.adversary.update(factor=factor)
        updates = (self.state.iteration - 1) // self.accumulation_steps
        self.average.update(self.restorer, updates=updates)
        return norm

    def _accumulation(self, iteration: int) -> tuple[bool, bool]:
        """Whether this iteration is the first and the last of an optimizer step; epochs and phases end with one."""
        start, end = self._segment(iteration)
        within = iteration - start
        return within % self.accumulation_steps == 0, (
            within + 1
        ) % self.accumulation_steps == 0 or iteration + 1 == end

    def _segment(self, iteration: int) -> tuple[int, int]:
        """First iteration, and the one behind the last, of the part of an epoch that lies in one phase."""
        span = self.plan.at(max(iteration, 0), self.epoch_length)
        epoch = max(iteration, 0) // self.epoch_length
        return max(epoch * self.epoch_length, span.first), min((epoch + 1) * self.epoch_length, span.end)

    def _set_rates(self, span: Span, iteration: int) -> float:
        factor = schedule(
            iteration - span.first,
            steps=span.end - span.first,
            warmup=self.warmup_steps,
            final=self.final_rate,
            name=self.schedule_name,
        )
        set_learning_rates(self.optimizer, base=self.base_rate, phase=span.phase, factor=factor)
        return factor

    def _count_skipped(self) -> None:
        if self._finite:
            self.skipped_steps = 0
            return
        self.skipped_steps += 1
        self.skipped_total += 1
        series = ", ".join(self._series_of_step())
        logger.warning(
            "iteration %d: loss or gradient is not finite, step skipped; series %s", self.state.iteration, series
        )
        if self.skipped_steps >= self.max_skipped:
            raise BundleError(
                f"the loss or its gradient was not finite in {self.skipped_steps} steps in a row, until iteration "
                f"{self.state.iteration}; the last one's series: {series}",
                hint="use a smaller learning_rate or --mixed_precision off, or leave the series out",
            )

    def _series_of_step(self) -> list[str]:
        """Keys of the series in the batches whose loss was not finite, or in all batches of the step."""
        iteration = self.state.iteration - 1
        start = iteration - (iteration - self._segment(iteration)[0]) % self.accumulation_steps
        of_all = distributed.gathered(self._not_finite)
        everything = range(start, iteration + 1)
        mine = self._not_finite if any(of_all) else everything
        keys = {
            self.dataset.series_key((number // self.epoch_length, index))
            for number in mine
            for index in self.sampler.indices(number % self.epoch_length)
        }
        return sorted({key for found in distributed.gathered(sorted(keys)) for key in found})

    def _enter_phase(self, iteration: int) -> Span:
        """Freeze, unfreeze and wrap anew where a phase begins; return the phase of an iteration."""
        span = self.plan.at(iteration, self.epoch_length)
        if span.number == self._phase_number:
            return span
        self._phase_number = span.number
        phase = span.phase
        if span.number > 0 or phase.trains & {"unet", "refiner"}:
            # The latent's scale belongs to the autoencoder as the denoiser meets it: after stage 0, before phase 1.
            self.measure_latents(iteration // self.epoch_length)
        self.step.set_phase(phase)
        self.network = self.step
        self.network = distributed.wrap(self.step, find_unused=phase.leaves_some_out)
        if iteration == span.first and distributed.rank() == 0:
            trains = ", ".join(sorted(phase.trains))
            logger.info("phase '%s': %d steps, trains %s", phase.name, span.end - span.first, trains)
        return span

    def _unwrap(self) -> None:
        self.network = self.step

    def measure_latents(self, epoch: int = 0) -> None:
        """Measure the latent's scale once, from fixed patches of `epoch`; a loaded checkpoint brings its own."""
        if bool(self.restorer.measured):
            return
        items = [self.dataset[(MEASURING + epoch, index)] for index in range(_MEASURE_PATCHES)]
        batch = {key: torch.stack([item[key] for item in items]).to(self.state.device) for key in items[0]}
        self.restorer.measure(batch["image"], batch["label"], batch["noise_level"])

    def _formatted(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            key: value.to(memory_format=self._memory_format) if value.ndim == 5 else value
            for key, value in batch.items()
        }


def _losses_by_name(output: Mapping[str, float]) -> dict[str, float]:
    return {f"train_{name}": value for name, value in output.items()}


def _go_to_data_position(trainer: BundleTrainer) -> None:
    trainer.sampler.skip = trainer.state.iteration % trainer.epoch_length
    trainer.sampler.epoch = trainer.state.iteration // trainer.epoch_length


def _finish_epoch(trainer: BundleTrainer) -> None:
    """Validate and save for an epoch whose last step was saved, but which was cut off before that."""
    iteration, length = trainer.state.iteration, trainer.epoch_length
    ended = math.ceil(iteration / length)
    at_end = iteration % length == 0 or iteration == trainer.total
    if at_end and trainer.epochs_done < ended:
        trainer.state.epoch = ended
        trainer.fire_event(Events.EPOCH_COMPLETED)


def _enter_epoch(trainer: BundleTrainer) -> None:
    epoch = trainer.state.epoch - 1
    trainer.sampler.epoch = epoch
    trainer._enter_phase(max(epoch * trainer.epoch_length, trainer.state.iteration))


def _leave_epoch(trainer: BundleTrainer) -> None:
    trainer.sampler.skip = 0


def _sampler(length: int, batch_size: int, rank: int, world: int) -> ResumableBatchSampler:
    try:
        return ResumableBatchSampler(length, batch_size=batch_size, rank=rank, world_size=world)
    except ValueError as error:
        raise BundleError(str(error), hint="use a smaller batch_size, or set steps_per_epoch") from error


def _loader(dataset: PatchDataset, sampler: ResumableBatchSampler, num_workers: int) -> DataLoader:
    # A generator of its own: making an iterator would otherwise draw from the global one and move the noise.
    return DataLoader(dataset, batch_sampler=sampler, num_workers=num_workers, generator=torch.Generator())


def _pieces(batch: Mapping[str, torch.Tensor], size: int) -> Iterator[tuple[int, int, dict[str, torch.Tensor]]]:
    """Offset, length and content of parts of at most `size` samples.

    A run that goes on with fewer processes has more samples in each, but no more memory.
    """
    length = next(iter(batch.values())).shape[0]
    for offset in range(0, length, size):
        piece = {key: value[offset : offset + size] for key, value in batch.items()}
        yield offset, min(size, length - offset), piece


def _mix(seed: int, iteration: int) -> int:
    """A 63-bit seed that differs for every (seed, iteration)."""
    mixed = (seed * 0x9E3779B97F4A7C15 + iteration * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    return (mixed ^ (mixed >> 31)) & (2**63 - 1)


def _no_loss(*_: Any) -> torch.Tensor:
    raise AssertionError("the training step computes the loss itself")
