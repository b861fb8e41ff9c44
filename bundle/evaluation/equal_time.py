"""Training of the baselines for a given time on the data that ours is trained on, with a curve over that time."""

import csv
import logging
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from bundle.data.patches import PatchDataset
from bundle.errors import BundleError, InterruptedRun
from bundle.evaluation.networks import build_baseline
from bundle.files import require_writable, whole_file
from bundle.metrics.image import psnr, rmse_hu
from bundle.networks.precision import Precision
from bundle.progress import Progress
from bundle.training.handlers import save_weights
from bundle.training.optim import MovingAverage, schedule

logger = logging.getLogger(__name__)

LIMITS_HU = (-1000.0, 1000.0)
_LOSS_HU = 25.0  # errors in this unit are about 1
_FINAL_RATE = 0.03
_WARMUP = 0.01  # share of the time
LEARNING_RATES = {"redcnn": 1.0e-4, "unet3d": 1.0e-3}


@dataclass
class State:
    """Where a training stands; what a checkpoint holds beside weights and optimizer."""

    step: int = 0
    seconds: float = 0.0
    curve: list[list[float]] = field(default_factory=list)


class EqualTimeTraining:
    """Trains a baseline until it has used `seconds` of computing time; the next call goes on where one stopped.

    What counts is the time of drawing patches and of optimizer steps; validation and checkpoints do not. On a CPU it
    is the process' own CPU time, so that other work on the machine takes nothing from it; on a GPU, wall time. Mean
    squared error, Adam, a cosine over the time, averaged weights: what serves RMSE and PSNR best.

    Args:
        name: 'redcnn' or 'unet3d'.
        dataset: patches as of training; item (epoch, index) is a dict with 'image' and 'label' (1, H, W, D) HU.
        validation: slabs of the same form.
        folder: weights, curve and checkpoint go here.
        seconds: computing time in all.
        batch_size: patches a step.
        learning_rate: None takes the baseline's own.
        validate_every: seconds of computing time between two points of the curve.
        checkpoint_every: wall seconds between two checkpoints.
        call_seconds: wall seconds after which this call stops with a checkpoint; 0 for no limit.
        precision: number format of the forward pass.
        device: where it runs.
        ema_decay: of the averaged weights.
        seed: of the first weights.
        clock: seconds of computing time so far; None picks it by the device.
    """

    def __init__(
        self,
        name: str,
        *,
        dataset: PatchDataset,
        validation: Dataset,
        folder: str | Path,
        seconds: float,
        batch_size: int,
        precision: Precision,
        device: torch.device | str = "cpu",
        learning_rate: float | None = None,
        validate_every: float = 120.0,
        checkpoint_every: float = 120.0,
        call_seconds: float = 0.0,
        ema_decay: float = 0.998,
        seed: int = 0,
        clock: Callable[[], float] | None = None,
    ) -> None:
        if not seconds > 0:
            raise BundleError(f"seconds must be above 0, not {seconds}", hint="name the training time with --seconds")
        torch.manual_seed(seed)
        self.name, self.folder = name, Path(folder)
        self.device, self.precision = torch.device(device), precision
        self.network = build_baseline(name).to(self.device)
        self.average = MovingAverage(self.network, decay=ema_decay)
        self.base_rate = learning_rate or LEARNING_RATES[name]
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=self.base_rate, betas=(0.9, 0.99))
        self.dataset, self.validation = dataset, validation
        self.seconds, self.batch_size = seconds, batch_size
        self.validate_every, self.checkpoint_every, self.call_seconds = validate_every, checkpoint_every, call_seconds
        self.clock = clock or (time.process_time if self.device.type == "cpu" else time.monotonic)
        self.seed = seed
        self.state = State()
        self.stop_asked = threading.Event()

    def run(self) -> None:
        """Train to the end of the time.

        Raises:
            InterruptedRun: after a checkpoint, when SIGTERM came or `call_seconds` are over.
        """
        require_writable(self.folder, option="output_dir")
        self._resume()
        before = None
        if threading.current_thread() is threading.main_thread():
            before = signal.signal(signal.SIGTERM, lambda *_: self.stop_asked.set())
        try:
            with Progress(f"training {self.name}", total=round(self.seconds), unit="second") as progress:
                self._train(progress)
        finally:
            if before is not None:
                signal.signal(signal.SIGTERM, before)
        self._validate()
        self._save()
        digest = save_weights(self.average.module, self.folder / f"{self.name}.pt")
        logger.info("%s.pt written after %d steps, SHA-256 %s", self.name, self.state.step, digest)

    def _train(self, progress: Progress) -> None:
        started = saved = time.monotonic()
        state = self.state
        while state.seconds < self.seconds:
            begun = self.clock()
            loss = self._step()
            spent = self.clock() - begun
            due = state.seconds // self.validate_every != (state.seconds + spent) // self.validate_every
            told = int(state.seconds + spent) - int(state.seconds)
            state.seconds += spent
            progress.update(told, note=f"loss {loss:.3f}")
            now = time.monotonic()
            stop = self.stop_asked.is_set() or 0 < self.call_seconds < now - started
            if due and state.seconds < self.seconds:
                self._validate()
            if stop or now - saved > self.checkpoint_every:
                self._save()
                saved = now
            if stop and state.seconds < self.seconds:
                raise InterruptedRun(f"{self.name} stopped after {state.seconds:.0f} of {self.seconds:.0f} s")

    def _step(self) -> float:
        share = self.state.seconds / self.seconds
        factor = schedule(round(1e4 * share), steps=10_000, warmup=round(1e4 * _WARMUP), final=_FINAL_RATE)
        for group in self.optimizer.param_groups:
            group["lr"] = self.base_rate * factor
        first = self.state.step * self.batch_size
        items = [self.dataset[(0, first + i)] for i in range(self.batch_size)]
        image, label = (torch.stack([item[key] for item in items]).to(self.device) for key in ("image", "label"))
        with self.precision.autocast():
            restored = self.network(image)
        loss = ((restored.float() - label) / _LOSS_HU).square().mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.average.update(self.network, updates=self.state.step)
        self.state.step += 1
        return float(loss.detach())

    @torch.no_grad()
    def _validate(self) -> None:
        """Add a point to the curve: RMSE and PSNR of the averaged weights, beside the input's."""
        values = []
        for index in range(len(self.validation)):  # type: ignore[arg-type]
            item = self.validation[index]
            with self.precision.autocast():
                restored = self.average.module(item["image"][None].to(self.device))[0].float().cpu()
            clipped = [np.clip(x[0].numpy(), *LIMITS_HU) for x in (restored, item["image"], item["label"])]
            values.append([f(image, clipped[2]) for image in clipped[:2] for f in (rmse_hu, _psnr)])
        if not values:
            return
        point = [self.state.seconds, float(self.state.step), *np.mean(values, axis=0).tolist()]
        self.state.curve.append(point)
        with whole_file(self.folder / f"{self.name}_curve.csv") as temporary, temporary.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["seconds", "step", "rmse_1000_hu", "psnr_1000", "input_rmse_1000_hu", "input_psnr_1000"])
            writer.writerows([f"{value:.6g}" for value in row] for row in self.state.curve)
        logger.info("%s at %.0f s: RMSE %.2f HU, PSNR %.2f dB", self.name, point[0], point[2], point[3])

    @property
    def _checkpoint(self) -> Path:
        return self.folder / f"{self.name}_checkpoint.pt"

    def _save(self) -> None:
        content: dict[str, Any] = {
            "settings": self._settings,
            "network": self.network.state_dict(),
            "ema": self.average.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.state.step,
            "seconds": self.state.seconds,
            "curve": self.state.curve,
        }
        with whole_file(self._checkpoint) as temporary:
            torch.save(content, temporary)

    def _resume(self) -> None:
        if not self._checkpoint.is_file():
            return
        try:
            content = torch.load(self._checkpoint, map_location=self.device, weights_only=True)
        except Exception as error:
            raise BundleError(
                f"checkpoint '{self._checkpoint.name}' cannot be read", hint="delete it to start again"
            ) from error
        for key, now in self._settings.items():
            if (then := content["settings"].get(key)) != now:
                raise BundleError(
                    f"checkpoint '{self._checkpoint.name}' was made with another {key}: {then}, this run has {now}",
                    hint="set it back, or use another output_dir",
                )
        self.network.load_state_dict(content["network"])
        self.average.module.load_state_dict(content["ema"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.state = State(content["step"], content["seconds"], content["curve"])

    @property
    def _settings(self) -> dict[str, Any]:
        return {
            "seconds": float(self.seconds),
            "batch_size": self.batch_size,
            "learning_rate": self.base_rate,
            "ema_decay": self.average.decay,
            "seed": self.seed,
            "patch": list(self.dataset.patch),
            "training_data": self.dataset.source.identity,
        }


def _psnr(image_hu: np.ndarray, label_hu: np.ndarray) -> float:
    return psnr(image_hu, label_hu, data_range=LIMITS_HU[1] - LIMITS_HU[0])
