"""Where a training's records go: metrics.csv, progress.png, TensorBoard, Weights & Biases.

None of them holds a name, an identifier or a path. The slices in TensorBoard are pixels of the validation series.
"""

import csv
import itertools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bundle.errors import BundleError
from bundle.files import whole_file
from bundle.training.losses import LOSS_TERMS
from bundle.training.monitor import Pictures, Sink
from bundle.training.phases import GROUPS
from bundle.training.validation import COMPARED

_STEP_COLUMNS = [
    *("step", "epoch", "phase", "loss", *LOSS_TERMS, "norm", *(f"lr_{group}" for group in GROUPS)),
    *("steps_per_second", "data_wait", "skipped_steps"),
]
_METRIC_COLUMNS = [
    f"{name}{which}" for name in ("val_psnr_1000", "val_ssim_1000", "val_rmse_1000_hu") for which in COMPARED
]
COLUMNS = (*_STEP_COLUMNS, *_METRIC_COLUMNS, "process_seconds")

# Centre and width in HU (the usual presets of CT viewers).
WINDOWS_HU = {"lung": (-600.0, 1500.0), "soft_tissue": (40.0, 400.0)}


def make_sinks(
    folder: Path,
    *,
    tensorboard: bool = True,
    pictures: bool = True,
    wandb: str = "off",
    settings: Mapping[str, Any] | None = None,
) -> list[Sink]:
    """The sinks of a run below its output folder.

    Args:
        folder: the run's.
        tensorboard: whether to write event files.
        pictures: whether slices go there too, and progress.png is drawn.
        wandb: Weights & Biases: 'off', 'offline' (files below the folder) or 'online'.
        settings: what W&B shows as configuration.

    Raises:
        BundleError: for an unknown `wandb`.
    """
    if wandb not in ("off", "offline", "online"):
        raise BundleError(f"wandb '{wandb}' is unknown", hint="use off, offline or online")
    sinks: list[Sink] = [CsvSink(folder / "metrics.csv")]
    if pictures:
        sinks.append(PictureSink(folder / "metrics.csv", folder / "progress.png"))
    if tensorboard:
        sinks.append(TensorBoardSink(folder / "tensorboard", pictures=pictures))
    if wandb != "off":
        sinks.append(WandbSink(folder, mode=wandb, settings=settings or {}))
    return sinks


class CsvSink:
    """A row per step and per validation, each with the CPU time in s that this process had taken since the run began.

    A run that goes on adds to the time of the last row that it keeps, so that curves over equal time can be drawn from
    the file. Validation counts, too, and reading the data where no workers do it; a GPU's time does not.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._began: float | None = time.process_time()

    def start(self, iteration: int) -> None:
        """Drop rows of steps that a killed run took after its last checkpoint: they are taken again."""
        rows = [row for row in read_rows(self.path) if int(row["step"]) <= iteration] if iteration else []
        before = rows[-1].get("process_seconds") if rows else "0"  # none in the table of an older version
        self._began = time.process_time() - float(before) if before else None
        with whole_file(self.path) as temporary, temporary.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)

    def step(self, iteration: int, values: Mapping[str, float | str]) -> None:
        """One row."""
        self._add({"step": iteration, **{key: _text(value) for key, value in values.items() if key in COLUMNS}})

    def validation(self, iteration: int, metrics: Mapping[str, float], pictures: Pictures) -> None:
        """One row, with the step's number and nothing else of it."""
        self._add({"step": iteration, **{key: _text(value) for key, value in metrics.items() if key in COLUMNS}})

    def close(self) -> None:
        """Nothing: every row was written."""

    def _add(self, row: Mapping[str, Any]) -> None:
        if self._began is not None:
            row = {**row, "process_seconds": f"{time.process_time() - self._began:.1f}"}
        with self.path.open("a", newline="") as stream:
            csv.DictWriter(stream, COLUMNS).writerow(row)


class PictureSink:
    """progress.png: losses, validation beside input and ceiling, learning rates; at most once a minute.

    Args:
        metrics: the CSV file that it shows.
        path: of the picture.
        every_seconds: least time between two drawings.
    """

    def __init__(self, metrics: Path, path: Path, *, every_seconds: float = 60.0) -> None:
        self.metrics, self.path, self.every_seconds = metrics, path, every_seconds
        self._drawn = time.monotonic()

    def start(self, iteration: int) -> None:
        """Nothing."""

    def step(self, iteration: int, values: Mapping[str, float | str]) -> None:
        """Draw now and then."""
        if time.monotonic() - self._drawn > self.every_seconds:
            self.draw()

    def validation(self, iteration: int, metrics: Mapping[str, float], pictures: Pictures) -> None:
        """Nothing: the next drawing shows it."""

    def close(self) -> None:
        """Draw the last state."""
        self.draw()

    def draw(self) -> None:
        """Write the picture."""
        # Figure without pyplot: no global state, no display.
        from matplotlib.figure import Figure

        rows = read_rows(self.metrics)
        steps = [row for row in rows if row["loss"]]
        figure = Figure(figsize=(9, 8), layout="constrained")
        losses, quality, rates = figure.subplots(3, 1, sharex=True)
        for phase, group in itertools.groupby(steps, key=lambda row: row["phase"]):
            part = list(group)
            losses.plot([int(row["step"]) for row in part], _smooth([float(row["loss"]) for row in part]), label=phase)
        losses.set(ylabel="loss (running mean)", yscale="log")
        for which, label in (("", "restored"), ("_input", "input"), ("_autoencoder", "autoencoder (ceiling)")):
            shown = [row for row in rows if row[f"val_psnr_1000{which}"]]
            values = [float(row[f"val_psnr_1000{which}"]) for row in shown]
            quality.plot([int(row["step"]) for row in shown], values, "o-", markersize=3, label=label)
        quality.set(ylabel="validation PSNR in dB\n(range 2000 HU)")
        for group_name in GROUPS:
            shown = [row for row in steps if float(row[f"lr_{group_name}"] or 0) > 0]
            values = [float(row[f"lr_{group_name}"]) for row in shown]
            rates.plot([int(row["step"]) for row in shown], values, ".", markersize=2, label=group_name)
        rates.set(ylabel="learning rate", yscale="log", xlabel="step")
        for axes in (losses, quality, rates):
            axes.grid(alpha=0.3)
            if axes.lines:
                axes.legend(fontsize="small")
        with whole_file(self.path) as temporary:
            figure.savefig(temporary, format="png", dpi=100)
        self._drawn = time.monotonic()


class TensorBoardSink:
    """Scalars, a learning rate per parameter group, and slices in two windows.

    Args:
        log_dir: where event files go.
        pictures: whether slices are shown.
    """

    def __init__(self, log_dir: Path, *, pictures: bool = True) -> None:
        self.log_dir, self.pictures = log_dir, pictures
        self._writer: Any = None

    def start(self, iteration: int) -> None:
        """Open an event file that makes TensorBoard forget what a killed run wrote after `iteration`."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.log_dir), purge_step=iteration + 1)

    def step(self, iteration: int, values: Mapping[str, float | str]) -> None:
        """One point of each curve."""
        for name, value in values.items():
            if isinstance(value, str):
                continue
            if name.startswith("lr_"):
                self._writer.add_scalar(f"learning_rate/{name[3:]}", value, iteration)
            else:
                tag = "running" if name in ("epoch", "steps_per_second", "data_wait", "skipped_steps") else "training"
                self._writer.add_scalar(f"{tag}/{name}", value, iteration)

    def validation(self, iteration: int, metrics: Mapping[str, float], pictures: Pictures) -> None:
        """One point of each metric, and the middle slice of the first slab."""
        for name, value in metrics.items():
            self._writer.add_scalar(f"validation/{name}", value, iteration)
        if pictures and self.pictures:
            row = torch.cat([pictures[name] for name in ("input", "restored", "target")], dim=1)
            for name, (centre, width) in WINDOWS_HU.items():
                shown = ((row - centre) / width + 0.5).clamp(0, 1)
                self._writer.add_image(f"input_restored_target/{name}", shown.mT, iteration, dataformats="HW")
        self._writer.flush()

    def close(self) -> None:
        """End the event file."""
        self._writer.close()


class WandbSink:
    """Weights & Biases, an optional package (extra `wandb`).

    Args:
        folder: where its files go.
        mode: 'offline' or 'online'.
        settings: shown as the run's configuration.
    """

    def __init__(self, folder: Path, *, mode: str, settings: Mapping[str, Any]) -> None:
        self.folder, self.mode, self.settings = folder, mode, settings
        self._run: Any = None

    def start(self, iteration: int) -> None:
        """Begin a W&B run.

        Raises:
            BundleError: when the package is missing.
        """
        try:
            import wandb
        except ImportError as error:
            raise BundleError("wandb is not installed", hint="pip install 'ct-enhance[wandb]'") from error
        # Its console capture and machine report would send host and user names, and paths.
        options = wandb.Settings(
            console="off", silent=True, x_disable_meta=True, x_disable_stats=True, disable_git=True
        )
        self._run = wandb.init(
            project="ct-enhance", dir=str(self.folder), mode=self.mode, config=dict(self.settings), settings=options
        )

    def step(self, iteration: int, values: Mapping[str, float | str]) -> None:
        """One point of each curve."""
        self._run.log({key: value for key, value in values.items() if not isinstance(value, str)}, step=iteration)

    def validation(self, iteration: int, metrics: Mapping[str, float], pictures: Pictures) -> None:
        """One point of each metric."""
        self._run.log(dict(metrics), step=iteration)

    def close(self) -> None:
        """End the W&B run."""
        self._run.finish()


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a metrics.csv, without a last one that was cut off; none when there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="") as stream:
        return [row for row in csv.DictReader(stream) if row["step"].isdigit() and None not in row.values()]


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else repr(value)


def _smooth(values: list[float], *, window: int = 50) -> list[float]:
    sums = [0.0, *itertools.accumulate(values)]
    starts = [max(end - window, 0) for end in range(1, len(values) + 1)]
    return [(sums[end] - sums[start]) / (end - start) for end, start in enumerate(starts, 1)]
