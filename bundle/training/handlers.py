"""The trainer's handler of checkpoints: exact resume, the best one, preemption."""

import json
import logging
import math
import signal
import threading
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from bundle.configuration import flag
from bundle.data.assembly import TrainingData
from bundle.errors import BundleError, ExitCode, InterruptedRun
from bundle.files import write_json
from bundle.networks.weights import save_weights
from bundle.training import distributed
from bundle.training.checkpoints import load_checkpoint, newest_checkpoint, prune_checkpoints, save_checkpoint
from bundle.training.state import restore_state, restore_weights, trainer_state
from bundle.training.trainer import BundleTrainer

logger = logging.getLogger(__name__)

_BEST = "checkpoint_best.json"


class DataHandler:
    """Ends the preparation of data beside a training with it, and says what it failed with.

    Args:
        data: whose archives may be coming while training runs.
    """

    def __init__(self, data: TrainingData) -> None:
        self.data = data

    def attach(self, trainer: BundleTrainer) -> None:
        """Register with the trainer."""
        trainer.at_exit.push(self._leave)

    def _leave(self, _: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.data.close()
        # Of an error in a loader's worker only the text comes here, without hint and exit code.
        if "DataLoader worker" in str(error):
            self.data.check()


class CheckpointHandler:
    """Saves by step, epoch, best validation and at the end; resumes at the start; saves when asked to stop.

    Of several processes all read and rank 0 writes: they have to see the same folder.

    Args:
        folder: where checkpoints lie.
        weights_file: where the averaged weights go at the end, as a flat state_dict.
        every: steps between two checkpoints; 0 for none within an epoch.
        keep: checkpoints kept of each kind.
        resume: 'auto' (the newest in `folder`, if any), 'off', or a file.
        evaluator: the validation's evaluator; its key metric picks checkpoint_best.pt.
        allow_world_size_change: go on with another number of processes; keeps the global batch, is not bit-exact.
        resume_weights_only: take only the weights of the checkpoint, begin with step 0, and go on as usual after that.
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
        allow_world_size_change: bool | str = False,
        resume_weights_only: bool | str = False,
    ) -> None:
        self.folder = Path(folder)
        self.weights_file = Path(weights_file)
        self.every = every
        self.keep = keep
        self.resume = str(resume)
        self.evaluator = evaluator
        self.allow_world_size_change = flag(allow_world_size_change)
        self.resume_weights_only = flag(resume_weights_only)
        self._due = False
        self._before: dict[int, Any] = {}  # what the signals did before

    def attach(self, trainer: BundleTrainer) -> None:
        """Register with the trainer; call after validation handlers, whose result is used."""
        trainer.add_event_handler(Events.STARTED, self._start)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._after_iteration)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._after_epoch)
        trainer.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, trainer: BundleTrainer) -> None:
        if threading.current_thread() is threading.main_thread():
            trainer.at_exit.callback(self._release_signals)
            self._before = {
                number: signal.signal(number, lambda number, _: _ask_to_stop(trainer, number))
                for number in (signal.SIGTERM, signal.SIGINT)
            }
        found = distributed.from_main(self._to_resume)
        if found is not None:
            path = Path(found)
            saved = load_checkpoint(path)
            if self.resume_weights_only and not saved.get("meta", {}).get("begun_by_weights"):
                restore_weights(trainer, saved, name=path.name)
                return
            restore_state(trainer, saved, name=path.name, allow_world_size_change=self.allow_world_size_change)
            self._restore_best(path.parent / _BEST, epochs=trainer.state.epoch)
            logger.info("resumed from %s at iteration %d", path.name, trainer.state.iteration)

    def _to_resume(self) -> str | None:
        if self.resume in ("off", "False"):
            return None
        path = newest_checkpoint(self.folder) if self.resume in ("auto", "True") else Path(self.resume)
        return None if path is None else str(path)

    def _after_iteration(self, trainer: BundleTrainer) -> None:
        iteration = trainer.state.iteration
        self._due |= self.every > 0 and iteration % self.every == 0
        if not trainer.between_updates:
            return  # the gradient of a half accumulated step is not saved
        if self._due or trainer.stop_agreed:
            self._due = False
            self._save(trainer, f"step_{iteration}")
        if trainer.stop_agreed:
            self._stop(f"iteration {iteration}")

    def _after_epoch(self, trainer: BundleTrainer) -> None:
        epoch = trainer.state.epoch - 1
        trainer.epochs_done = epoch + 1  # validation comes before this handler
        if self.evaluator is not None and getattr(self.evaluator.state, "best_metric_epoch", None) == epoch + 1:
            self._save(trainer, "best")
            metric = float(self.evaluator.state.best_metric)  # type: ignore[attr-defined]
            best = {"metric": metric if math.isfinite(metric) else None, "epoch": epoch}
            distributed.from_main(lambda: write_json(self.folder / _BEST, best))
        self._save(trainer, f"epoch_{epoch}")
        if distributed.any_of(trainer.stop_asked.is_set()):  # during the validation
            self._stop(f"epoch {epoch}")

    def _finish(self, trainer: BundleTrainer) -> None:
        self._save(trainer, "final")
        distributed.from_main(lambda: save_weights(trainer.average.module, self.weights_file))
        if distributed.rank() == 0:
            logger.info("weights written to %s", self.weights_file.name)

    def _save(self, trainer: BundleTrainer, kind: str) -> None:
        """Write one checkpoint and drop what is no longer kept.

        Raises:
            BundleError: with exit code 74, on all processes, when the disk is full or cannot be written to.
        """
        path = self.folder / f"checkpoint_{kind}.pt"

        def write() -> None:
            try:
                save_checkpoint(trainer_state(trainer), path)
            except (OSError, RuntimeError) as error:  # torch's writer turns a failed write into a RuntimeError
                raise BundleError(
                    f"checkpoint '{path.name}' could not be written: {_reason(error)}",
                    hint="make room or use a smaller keep_checkpoints, then run the same command: it goes on from the "
                    "checkpoint before",
                    exit_code=ExitCode.IO,
                ) from error
            prune_checkpoints(self.folder, keep=self.keep)

        distributed.from_main(write)

    def _stop(self, where: str) -> None:
        raise InterruptedRun(f"stopped after {where}; a checkpoint was written")

    def _restore_best(self, path: Path, *, epochs: int) -> None:
        """Tell the evaluator what it has to beat, or the first validation after a resume would count as the best."""
        if self.evaluator is None or not path.is_file():
            return
        best = json.loads(path.read_text())
        # A later one is of a branch that the user went back from.
        if best["metric"] is not None and best["epoch"] < epochs:
            self.evaluator.state.best_metric = best["metric"]  # type: ignore[attr-defined]
            self.evaluator.state.best_metric_epoch = best["epoch"] + 1  # type: ignore[attr-defined]

    def _release_signals(self) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}


def _ask_to_stop(trainer: BundleTrainer, number: int) -> None:
    """Let the step in hand end first; who presses Ctrl-C again does not want to wait."""
    if number == signal.SIGINT and trainer.stop_asked.is_set():
        raise KeyboardInterrupt
    trainer.stop_asked.set()


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    cause = error.__context__
    return cause.strerror if isinstance(cause, OSError) and cause.strerror else " ".join(str(error).split())[:120]
