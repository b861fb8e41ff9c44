"""Seeing a training: one handler that gathers what there is to tell, and gives it to the terminal and to sinks."""

import math
import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents

from bundle.progress import Progress
from bundle.training import distributed
from bundle.training.trainer import BundleTrainer

# Of a validation slab, HU (H, W) each: input, restoration, label.
Pictures = dict[str, torch.Tensor]
_WINDOW_STEPS = 50  # speed and data wait are means over so many steps


class Sink(Protocol):
    """Where records of a training go; called on rank 0 only."""

    def start(self, iteration: int) -> None:
        """A run begins or goes on behind `iteration`; what a killed run told of later ones is void."""

    def step(self, iteration: int, values: dict[str, float | str]) -> None:
        """One step."""

    def validation(self, iteration: int, metrics: dict[str, float], pictures: Pictures) -> None:
        """One validation."""

    def close(self) -> None:
        """The run ended, well or not."""


class Monitor:
    """Handler that shows progress and feeds sinks, on rank 0.

    Args:
        sinks: where records go.
        evaluator: the validation's.
    """

    def __init__(self, sinks: Sequence[Sink] = (), *, evaluator: Engine | None = None) -> None:
        self.sinks = list(sinks)
        self.evaluator = evaluator
        self._progress: Progress | None = None
        self._begun = False
        self._pictures: Pictures = {}
        self._clock = _Clock()

    def attach(self, trainer: BundleTrainer) -> None:
        """Register with the trainer."""
        if distributed.rank() != 0:
            return
        trainer.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        trainer.add_event_handler(Events.GET_BATCH_STARTED, lambda _: self._clock.wait())
        trainer.add_event_handler(Events.GET_BATCH_COMPLETED, lambda _: self._clock.go())
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._after_iteration)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch)
        trainer.add_event_handler(Events.COMPLETED, self._close)
        trainer.add_event_handler(Events.EXCEPTION_RAISED, self._fail)
        if self.evaluator is not None:
            self.evaluator.add_event_handler(IterationEvents.MODEL_COMPLETED, self._keep_pictures)
            self.evaluator.add_event_handler(Events.EPOCH_COMPLETED, lambda _: self._validated(trainer))

    def _begin(self, iteration: int) -> None:
        """Start the sinks, once; not when the run starts, as a checkpoint may be loaded after that."""
        if not self._begun:
            self._begun = True
            for sink in self.sinks:
                sink.start(iteration)

    def _start_epoch(self, trainer: BundleTrainer) -> None:
        self._begin(trainer.state.iteration)
        self._clock = _Clock()
        phase = trainer.plan.at(trainer.state.iteration, trainer.epoch_length).phase
        begun = (trainer.state.epoch - 1) * trainer.epoch_length
        self._progress = Progress(
            f"epoch {trainer.state.epoch}/{trainer.state.max_epochs} ({phase.name})",
            total=min(trainer.epoch_length, trainer.total - begun) - trainer.sampler.skip,
        )

    def _after_iteration(self, trainer: BundleTrainer) -> None:
        self._clock.step()
        output = trainer.state.output
        rates = {group["name"]: group["lr"] for group in trainer.optimizer.param_groups}
        values: dict[str, float | str] = {
            "epoch": (trainer.state.iteration - 1) // trainer.epoch_length,
            "phase": trainer.phase.name,
            **output,
            **{f"lr_{name}": rate for name, rate in rates.items()},
            "steps_per_second": self._clock.speed,
            "data_wait": self._clock.share_waited,
            "skipped_steps": trainer.skipped_total,
        }
        for sink in self.sinks:
            sink.step(trainer.state.iteration, values)
        if self._progress is not None:
            left = (trainer.total - trainer.state.iteration) / self._clock.speed if self._clock.speed else math.nan
            self._progress.update(
                note=f"loss {output['loss']:.4f}, lr {max(rates.values()):.1e}, {self._clock.speed:.2g} steps/s, "
                f"data wait {100 * self._clock.share_waited:.0f} %, whole run {_hours(left)} left"
            )

    def _end_epoch(self, trainer: BundleTrainer) -> None:
        if self._progress is not None:
            self._progress.close()

    def _keep_pictures(self, evaluator: Any) -> None:
        if evaluator.state.iteration % evaluator.state.epoch_length != 1 % evaluator.state.epoch_length:
            return  # the first slab stands for all
        item = evaluator.state.output[0]
        middle = item["label"].shape[-1] // 2
        names = {"input": "image", "restored": "pred", "target": "label"}
        self._pictures = {
            name: torch.as_tensor(item[key])[0, ..., middle].detach().float().cpu() for name, key in names.items()
        }

    def _validated(self, trainer: BundleTrainer) -> None:
        assert self.evaluator is not None
        self._begin(trainer.state.iteration)
        metrics = {name: float(value) for name, value in self.evaluator.state.metrics.items()}
        for sink in self.sinks:
            sink.validation(trainer.state.iteration, metrics, self._pictures)

    def _close(self, _: BundleTrainer) -> None:
        for sink in self.sinks if self._begun else ():
            sink.close()
        self._begun = False  # Ignite tells of an error more than once

    def _fail(self, trainer: BundleTrainer, error: BaseException) -> None:
        """Close the sinks; whoever handles this event has to raise the error again."""
        self._close(trainer)
        raise error


class _Clock:
    """Speed and share of the time waited for data, over the last steps."""

    def __init__(self) -> None:
        self._marks: list[tuple[float, float]] = [(time.monotonic(), 0.0)]  # time, waited until then
        self._waited = 0.0
        self._since = 0.0

    def wait(self) -> None:
        self._since = time.monotonic()

    def go(self) -> None:
        self._waited += time.monotonic() - self._since

    def step(self) -> None:
        self._marks = [*self._marks[-_WINDOW_STEPS:], (time.monotonic(), self._waited)]

    @property
    def speed(self) -> float:
        seconds = self._marks[-1][0] - self._marks[0][0]
        return (len(self._marks) - 1) / seconds if seconds > 0 else 0.0

    @property
    def share_waited(self) -> float:
        (start, before), (end, after) = self._marks[0], self._marks[-1]
        return (after - before) / (end - start) if end > start else 0.0


def _hours(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
