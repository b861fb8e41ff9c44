"""The trainer: MONAI's SupervisedTrainer with one step of ours, phases, and everything that a resume needs."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from monai.inferers import Inferer
from monai.utils import CommonKeys
from torch.utils.data import DataLoader

from bundle.data.patches import PatchDataset
from bundle.data.samplers import ResumableBatchSampler
from bundle.errors import BundleError
from bundle.networks.restorer import Restorer
from bundle.training.optim import MovingAverage, clip_by_group, schedule, set_learning_rates
from bundle.training.phases import Phase, PhasePlan
from bundle.training.step import TrainingStep

logger = logging.getLogger(__name__)

_MEASURE_PATCHES = 24  # training patches from which the latent's scale is measured
_MEASURE_EPOCH = 2**31 - 1  # an epoch that no run reaches: these patches are not those of a training epoch


class BundleTrainer(SupervisedTrainer):
    """Trains a Restorer through the phases of a plan.

    Learning rates, phase, noise and data are functions of (seed, iteration, rank); what has to be saved is
    weights, their average, the optimizer, the scaler and the iteration.

    Args:
        step: the training step around the Restorer.
        average: moving average of the Restorer's weights; what inference loads.
        optimizer: built by training.optim.build_optimizer.
        plan: the phases.
        dataset: patches.
        batch_size: patches per step.
        device: where to train.
        seed: of noise and data.
        learning_rate: base rate.
        warmup_steps: steps of linear warm-up at the start of each phase.
        final_rate: factor that the cosine ends at.
        clip_norm: largest gradient norm of each parameter group.
        accumulation_steps: batches per optimizer step.
        num_workers: of the data loader.
        max_skipped: non-finite optimizer steps in a row that stop the run.
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
        final_rate: float = 0.03,
        clip_norm: float = 1.0,
        accumulation_steps: int = 1,
        num_workers: int = 0,
        max_skipped: int = 20,
        train_handlers: Sequence[Any] | None = None,
        inferer: Inferer | None = None,
        max_epochs: int | None = None,
    ) -> None:
        _check_patch(dataset.patch, step)
        self.plan = plan
        self.seed = seed
        self.base_rate = learning_rate
        self.warmup_steps = warmup_steps
        self.final_rate = final_rate
        self.clip_norm = clip_norm
        self.max_skipped = max_skipped
        self.skipped_steps = 0
        self._finite = True  # so far in this optimizer step
        self.dataset = dataset
        self.sampler = ResumableBatchSampler(len(dataset), batch_size=batch_size)
        device = torch.device(device)
        step.to(device)
        self.average = average
        average.module.to(device)
        super().__init__(
            device=device,
            max_epochs=max_epochs or plan.max_epochs,
            train_data_loader=_loader(dataset, self.sampler, num_workers),
            network=step,
            optimizer=optimizer,
            loss_function=_no_loss,
            inferer=inferer,
            optim_set_to_none=True,
            accumulation_steps=accumulation_steps,
            decollate=False,
        )
        # Ignite would say each start, epoch and error a second time, in its own words.
        self.logger.setLevel(logging.CRITICAL)
        self.loss_scaler = torch.amp.GradScaler(device.type, enabled=step.precision.needs_scaler)
        # These run first: handlers given from outside, such as the one that loads a checkpoint, come before the
        # data position is read off the iteration, because STARTED handlers run in the order they were added.
        for handler in train_handlers or ():
            handler.attach(self)
        self.add_event_handler(Events.STARTED, _go_to_data_position)
        self.add_event_handler(Events.EPOCH_STARTED, _enter_epoch)
        self.add_event_handler(Events.EPOCH_COMPLETED, _leave_epoch)

    @property
    def step(self) -> TrainingStep:
        """The training step."""
        return cast(TrainingStep, self.network)

    @property
    def restorer(self) -> Restorer:
        """The networks in training."""
        return self.step.restorer

    @property
    def phase(self) -> Phase:
        """Phase of the current iteration."""
        return self.plan.at(self._epoch_of(self.state.iteration - 1))[0]

    @property
    def between_updates(self) -> bool:
        """Whether no gradient waits for an optimizer step: only then is a checkpoint the whole state."""
        return self._accumulation(self.state.iteration - 1)[1]

    def _epoch_of(self, iteration: int) -> int:
        """0-based epoch of a 0-based iteration; `state.epoch` is only right inside an epoch after a resume."""
        return max(iteration, 0) // cast(int, self.state.epoch_length)

    def _iteration(self, engine: Engine, batchdata: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        iteration = self.state.iteration - 1
        torch.manual_seed(_mix(self.seed, iteration))
        self._set_rates(iteration)
        batch = {key: value.to(self.state.device, non_blocking=True) for key, value in batchdata.items()}
        first, last = self._accumulation(iteration)
        self.network.train()
        if first:
            self.optimizer.zero_grad(set_to_none=True)
            self._finite = True
        losses = cast(dict[str, torch.Tensor], self.inferer(cast(Any, batch), self.network))
        total = losses["loss"]
        self._finite = self._finite and bool(torch.isfinite(total))
        if self._finite:
            self.loss_scaler.scale(total / self.accumulation_steps).backward()
        norm = self._update() if last and self._finite else 0.0
        if last:
            self._count_skipped(self._finite)
        return {CommonKeys.LOSS: total.item(), "norm": norm, **{k: v.item() for k, v in losses.items()}}

    def _update(self) -> float:
        self.loss_scaler.unscale_(self.optimizer)
        norm = clip_by_group(self.optimizer, most=self.clip_norm)
        if not self.loss_scaler.is_enabled() and not math.isfinite(norm):  # the scaler looks for itself
            self._finite = False
            return norm
        self.loss_scaler.step(self.optimizer)
        self.loss_scaler.update()
        updates = (self.state.iteration - 1) // self.accumulation_steps
        self.average.update(self.restorer, updates=updates)
        return norm

    def _accumulation(self, iteration: int) -> tuple[bool, bool]:
        """Whether this iteration is the first and the last of an optimizer step; epochs end with a step."""
        within = iteration % cast(int, self.state.epoch_length)
        last_of_epoch = within + 1 == self.state.epoch_length
        return within % self.accumulation_steps == 0, (within + 1) % self.accumulation_steps == 0 or last_of_epoch

    def _set_rates(self, iteration: int) -> None:
        length = cast(int, self.state.epoch_length)
        phase, first_epoch, _ = self.plan.at(self._epoch_of(iteration))
        factor = schedule(
            iteration - first_epoch * length,
            steps=phase.epochs * length,
            warmup=self.warmup_steps,
            final=self.final_rate,
        )
        set_learning_rates(self.optimizer, base=self.base_rate, phase=phase, factor=factor)

    def _count_skipped(self, finite: bool) -> None:
        self.skipped_steps = 0 if finite else self.skipped_steps + 1
        if not finite:
            logger.warning("iteration %d: loss or gradient is not finite, step skipped", self.state.iteration)
        if self.skipped_steps >= self.max_skipped:
            raise BundleError(
                f"the loss or its gradient was not finite in {self.skipped_steps} steps in a row, until iteration "
                f"{self.state.iteration}",
                hint="use a smaller learning_rate or --mixed_precision off",
            )

    def measure_latents(self) -> None:
        """Measure the latent's scale once, from fixed training patches; a loaded checkpoint brings its own."""
        if bool(self.restorer.measured):
            return
        items = [self.dataset[(_MEASURE_EPOCH, index)] for index in range(_MEASURE_PATCHES)]
        batch = {key: torch.stack([item[key] for item in items]).to(self.state.device) for key in items[0]}
        self.restorer.measure(batch["image"], batch["label"], batch["noise_level"])


def _go_to_data_position(trainer: BundleTrainer) -> None:
    trainer.sampler.skip = trainer.state.iteration % cast(int, trainer.state.epoch_length)
    trainer.sampler.epoch = trainer._epoch_of(trainer.state.iteration)


def _enter_epoch(trainer: BundleTrainer) -> None:
    epoch = trainer.state.epoch - 1
    trainer.sampler.epoch = epoch
    phase, first, number = trainer.plan.at(epoch)
    if number > 0 or phase.trains & {"unet", "refiner"}:
        # The latent's scale belongs to the autoencoder as the denoiser meets it: after stage 0, before phase 1.
        trainer.measure_latents()
    trainer.step.set_phase(phase)
    if epoch == first:
        logger.info("phase '%s': %d epochs, trains %s", phase.name, phase.epochs, ", ".join(sorted(phase.trains)))


def _leave_epoch(trainer: BundleTrainer) -> None:
    trainer.sampler.skip = 0


def _loader(dataset: PatchDataset, sampler: ResumableBatchSampler, num_workers: int) -> DataLoader:
    # A generator of its own: making an iterator would otherwise draw from the global one and move the noise.
    return DataLoader(dataset, batch_sampler=sampler, num_workers=num_workers, generator=torch.Generator())


def _check_patch(patch: tuple[int, int, int], step: TrainingStep) -> None:
    """Refuse patches that the networks cannot take, or whose gradients this machine computes wrongly."""
    size, multiple = patch[0], step.restorer.multiple
    precision = step.precision
    if size % multiple:
        raise BundleError(
            f"patch_size {size} is no multiple of {multiple}", hint=f"use {-(-size // multiple) * multiple}"
        )
    # oneDNN's bfloat16 weight gradient of a 3D convolution is garbage where rows and columns are two
    # (torch 2.13 on an AVX512-BF16 processor): a level of the denoiser would see that.
    if size // multiple == 2 and precision.device_type == "cpu" and precision.dtype is torch.bfloat16:
        raise BundleError(
            f"patch_size {size} cannot be trained in bfloat16 on a CPU",
            hint=f"use --patch_size {4 * multiple} or --mixed_precision off",
        )


def _mix(seed: int, iteration: int, rank: int = 0) -> int:
    """A 63-bit seed that differs for every (seed, iteration, rank)."""
    mixed = (seed * 0x9E3779B97F4A7C15 + iteration * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) & (2**64 - 1)
    return (mixed ^ (mixed >> 31)) & (2**63 - 1)


def _no_loss(*_: Any) -> torch.Tensor:
    raise AssertionError("the training step computes the loss itself")
