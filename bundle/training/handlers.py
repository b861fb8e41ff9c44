"""Handlers of the trainer: checkpoints with exact resume, preemption, progress."""

import json
import logging
import math
import signal
import threading
from pathlib import Path
from typing import Any, cast

import torch
from ignite.engine import Engine, Events

import bundle
from bundle.data.assembly import TrainingData
from bundle.errors import BundleError, InterruptedRun
from bundle.files import file_digest, require_writable, whole_file, write_json
from bundle.networks.weights import load_weights
from bundle.progress import Progress
from bundle.training.checkpoints import load_checkpoint, newest_checkpoint, prune_checkpoints, save_checkpoint
from bundle.training.optim import MovingAverage
from bundle.training.trainer import BundleTrainer

logger = logging.getLogger(__name__)

_BEST = "checkpoint_best.json"
# What the configs call a setting that a checkpoint keeps under another name.
_KEYS = {
    "accumulation_steps": "gradient_accumulation_steps",
    "epoch_length": "steps per epoch (steps_per_epoch, or by the data, patch_size and num_slices)",
    "world_size": "number of processes",
}


class CheckpointHandler:
    """Saves by step, epoch, best validation and at the end; resumes at the start; saves when asked to stop.

    Args:
        folder: where checkpoints lie.
        weights_file: where the averaged weights go at the end, as a flat state_dict.
        every: steps between two checkpoints; 0 for none within an epoch.
        keep: checkpoints kept of each kind.
        resume: 'auto' (the newest in `folder`, if any), 'off', or a file.
        evaluator: the validation's evaluator; its key metric picks checkpoint_best.pt.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        weights_file: str | Path,
        every: int = 500,
        keep: int = 3,
        resume: str = "auto",
        evaluator: Engine | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.weights_file = Path(weights_file)
        self.every = every
        self.keep = keep
        self.resume = str(resume)
        self.evaluator = evaluator
        self.stop_asked = threading.Event()
        self._due = False
        self._before: Any = None  # what SIGTERM did before

    def attach(self, trainer: BundleTrainer) -> None:
        """Register with the trainer; call after validation handlers, whose result is used."""
        trainer.add_event_handler(Events.STARTED, self._start)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._after_iteration)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._after_epoch)
        trainer.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, trainer: BundleTrainer) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, lambda *_: self.stop_asked.set())
        path = self._to_resume()
        if path is not None:
            restore_state(trainer, load_checkpoint(path), name=path.name)
            self._restore_best(path.parent / _BEST, epochs=trainer.state.epoch)
            logger.info("resumed from %s at iteration %d", path.name, trainer.state.iteration)

    def _to_resume(self) -> Path | None:
        if self.resume in ("off", "False"):
            return None
        return newest_checkpoint(self.folder) if self.resume in ("auto", "True") else Path(self.resume)

    def _after_iteration(self, trainer: BundleTrainer) -> None:
        iteration = trainer.state.iteration
        self._due |= self.every > 0 and iteration % self.every == 0
        if not trainer.between_updates:
            return  # the gradient of a half accumulated step is not saved
        if self._due or self.stop_asked.is_set():
            self._due = False
            save_checkpoint(trainer_state(trainer), self.folder / f"checkpoint_step_{iteration}.pt")
            prune_checkpoints(self.folder, keep=self.keep)
        if self.stop_asked.is_set():
            self._release_signal()
            raise InterruptedRun(f"stopped after iteration {iteration}; a checkpoint was written")

    def _after_epoch(self, trainer: BundleTrainer) -> None:
        epoch = trainer.state.epoch - 1
        if self.evaluator is not None and getattr(self.evaluator.state, "best_metric_epoch", None) == epoch + 1:
            save_checkpoint(trainer_state(trainer), self.folder / "checkpoint_best.pt")
            metric = float(self.evaluator.state.best_metric)  # type: ignore[attr-defined]
            write_json(self.folder / _BEST, {"metric": metric if math.isfinite(metric) else None, "epoch": epoch})
        save_checkpoint(trainer_state(trainer), self.folder / f"checkpoint_epoch_{epoch}.pt")
        prune_checkpoints(self.folder, keep=self.keep)

    def _finish(self, trainer: BundleTrainer) -> None:
        save_checkpoint(trainer_state(trainer), self.folder / "checkpoint_final.pt")
        save_weights(trainer.average.module, self.weights_file)
        logger.info("weights written to %s", self.weights_file.name)
        self._release_signal()

    def _restore_best(self, path: Path, *, epochs: int) -> None:
        """Tell the evaluator what it has to beat, or the first validation after a resume would count as the best."""
        if self.evaluator is None or not path.is_file():
            return
        best = json.loads(path.read_text())
        # A later one is of a branch that the user went back from.
        if best["metric"] is not None and best["epoch"] < epochs:
            self.evaluator.state.best_metric = best["metric"]  # type: ignore[attr-defined]
            self.evaluator.state.best_metric_epoch = best["epoch"] + 1  # type: ignore[attr-defined]

    def _release_signal(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None


def save_weights(network: torch.nn.Module, path: Path) -> str:
    """Write a flat state_dict, as `models/model.pt` is, and return its SHA-256."""
    with whole_file(path) as temporary:
        torch.save({key: value.detach().cpu() for key, value in network.state_dict().items()}, temporary)
    return file_digest(path)


def trainer_state(trainer: BundleTrainer) -> dict[str, Any]:
    """Everything that an exact resume needs, as tensors and plain types (contract 7)."""
    return {
        "format": 1,
        "network": trainer.restorer.state_dict(),
        "ema": trainer.average.module.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.loss_scaler.state_dict(),
        "trainer": {"iteration": trainer.state.iteration, "epoch_length": trainer.state.epoch_length},
        "meta": {**_identity(trainer), "phase": trainer.phase.name, "bundle_version": bundle.__version__},
    }


def restore_state(trainer: BundleTrainer, saved: dict[str, Any], *, name: str) -> None:
    """Put a saved state into the trainer.

    Raises:
        BundleError: when it is of another format, other networks, or another run's settings.
    """
    if saved.get("format") != 1:
        raise BundleError(f"checkpoint '{name}' is not one of this bundle's", hint="check --resume")
    for key, now in _identity(trainer).items():
        then = saved["meta"].get(key)
        if then != now:
            raise BundleError(
                f"checkpoint '{name}' was made with another {_KEYS.get(key, key)}: {then}, this run has {now}",
                hint="set it back, or use another output_dir",
            )
    try:
        trainer.restorer.load_state_dict(saved["network"])
        trainer.average.module.load_state_dict(saved["ema"])
    except RuntimeError as error:
        message = f"checkpoint '{name}' is of other networks"
        raise BundleError(message, hint="use the preset it was made with") from error
    trainer.optimizer.load_state_dict(saved["optimizer"])
    trainer.loss_scaler.load_state_dict(saved["scaler"])
    trainer.state.iteration = saved["trainer"]["iteration"]
    trainer.state.epoch = trainer.state.iteration // cast(int, trainer.state.epoch_length)


def _identity(trainer: BundleTrainer) -> dict[str, Any]:
    """Settings that must be the same for a resume to continue the same run."""
    return {
        "seed": trainer.seed,
        "batch_size": trainer.sampler.batch_size,
        "world_size": trainer.sampler.world_size,
        "accumulation_steps": trainer.accumulation_steps,
        "epoch_length": trainer.state.epoch_length,  # last: it follows from the others
    }


class TensorBoardLog:
    """MONAI's TensorBoardStatsHandler, made when the engine starts: a config that is only read writes nothing.

    Args:
        log_dir: where the event files go.
        **options: of TensorBoardStatsHandler.
    """

    def __init__(self, log_dir: str | Path, **options: Any) -> None:
        self.log_dir = str(log_dir)
        self.options = options

    def attach(self, engine: Engine) -> None:
        """Register with the trainer or the evaluator."""
        engine.add_event_handler(Events.STARTED(once=1), self._start)

    def _start(self, engine: Engine) -> None:
        from monai.handlers import TensorBoardStatsHandler

        TensorBoardStatsHandler(log_dir=self.log_dir, **self.options).attach(engine)


class ProgressHandler:
    """Shows phase, loss and remaining steps: a bar on a terminal, a line every few seconds in a log."""

    def __init__(self) -> None:
        self._progress: Progress | None = None

    def attach(self, trainer: BundleTrainer) -> None:
        """Register with the trainer."""
        trainer.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._after_iteration)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch)

    def _start_epoch(self, trainer: BundleTrainer) -> None:
        phase = trainer.plan.at(trainer.state.epoch - 1)[0]
        self._progress = Progress(
            f"epoch {trainer.state.epoch}/{trainer.state.max_epochs} ({phase.name})",
            total=cast(int, trainer.state.epoch_length) - trainer.sampler.skip,
        )

    def _after_iteration(self, trainer: BundleTrainer) -> None:
        if self._progress is not None:
            self._progress.update(note=f"loss {trainer.state.output['loss']:.4f}")

    def _end_epoch(self, trainer: BundleTrainer) -> None:
        if self._progress is not None:
            self._progress.close()


def start_run(
    output_folder: Path,
    network: torch.nn.Module,
    average: MovingAverage,
    weights_file: str | Path | None,
    data: TrainingData,
) -> None:
    """Check the output folder, load starting weights, prepare the data and write which series are used for what.

    Raises:
        BundleError: when the folder cannot be written to, the weights do not fit, or the data hold nothing usable.
    """
    require_writable(output_folder, option="output_dir")
    if weights_file:
        load_weights(network, weights_file)
        average.module.load_state_dict(network.state_dict())
    data.write_summary(output_folder / "data.json")
    split = data.split
    logger.info(
        "%d series train, %d validate (%s), %d skipped",
        len(split.train),
        len(split.validation),
        split.validation_on,
        len(data.skipped),
    )
