"""Samples per second of the data pipeline against what a trainer takes, and against MONAI's two caches, in one run.

The same cases, the same sample: a patch cut at a random place, noise of a random dose added. Preparation (reading,
drawing the noise) is not timed: all three do it once. One process, no workers. The trainer's demand is measured with
the `small` networks on this machine; that of a GPU is calculated from the same step's floating-point operations.
The last line says how busy the machine was: figures of a busy one are of the machine as much as of the pipeline.

Usage: python scripts/bench_data.py [--data_dir DIR] [--seconds S] [--steps N] [--output FILE]
"""

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bundle.errors import BundleError, report  # noqa: E402 - after the path

PATCH, SLICES, BATCH = 128, 8, 2
SERIES, MOST_SLICES = 2, 16
# An 80 GB H100: peak in bfloat16 by its data sheet, and the share of it that 3D convolutions of few channels may get.
GPU_PEAK_TFLOPS, GPU_SHARE = 990.0, 0.2
LEVELS = ("image", "quantum_0", "electronic_0")


def cases(data_dir: Path, cache: Path) -> list[Any]:
    """A few prepared cases of real series, their middle slices."""
    from monai.transforms import CenterSpatialCropd, Compose

    from bundle.data.prepared import prepare_cases
    from bundle.data.sources import find_cases
    from bundle.data.transforms import NoiseRealisationsd, SlicesLastOrientationd
    from bundle.dicom.reader import LoadSeriesd

    chain = Compose(
        [
            LoadSeriesd("image"),
            CenterSpatialCropd("image", roi_size=[-1, -1, MOST_SLICES]),
            NoiseRealisationsd("image", realisations=1),
            SlicesLastOrientationd(LEVELS),
        ]
    )
    found = find_cases(data_dir, max_samples=SERIES).cases
    prepared, _ = prepare_cases(found, transform=chain, cache_dir=cache, recipe={"bench": 1}, realisations=1)
    return prepared


def ours(prepared: list[Any]) -> Callable[[int], Any]:
    """The bundle's own patches."""
    from bundle.data.patches import PatchDataset
    from bundle.data.splits import Part

    parts = [Part.whole(case) for case in prepared]
    return PatchDataset(parts, patch_size=PATCH, num_slices=SLICES, length=1 << 30, seed=0).__getitem__


def monais(prepared: list[Any], *, persistent: Path | None) -> Callable[[int], Any]:
    """MONAI's CacheDataset (all in memory), or PersistentDataset in a folder."""
    import torch
    from monai.data import CacheDataset, PersistentDataset
    from monai.transforms import Compose, Lambda, RandSpatialCropd

    from bundle.degrade.low_dose import apply_dose

    def load(case: Any) -> dict[str, Any]:
        quantum, electronic = case.noise(0)
        arrays = (np.asarray(case.image_hu, np.float32), np.asarray(quantum), np.asarray(electronic))
        return {key: torch.from_numpy(np.array(array))[None] for key, array in zip(LEVELS, arrays, strict=True)}

    def degrade(item: dict[str, Any]) -> dict[str, Any]:
        label, quantum, electronic = (np.asarray(item[key]) for key in LEVELS)
        dose = float(np.exp(np.random.uniform(np.log(0.1), 0)))
        return {"image": torch.from_numpy(apply_dose(label, quantum, electronic, dose=dose)), "label": item["image"]}

    crop = RandSpatialCropd(LEVELS, roi_size=(PATCH, PATCH, SLICES), random_size=False)
    chain = Compose([Lambda(load), crop, Lambda(degrade)])
    if persistent is None:
        data: Any = CacheDataset(prepared, chain, progress=False)
    else:
        data = PersistentDataset(prepared, chain, cache_dir=persistent, hash_func=lambda case: case.key.encode())
    return lambda index: data[index % len(prepared)]


def rate(sample: Callable[[int], Any], seconds: float) -> float:
    """Samples per second, after a few that do not count."""
    for index in range(6):
        sample(index)
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        sample(6 + done)
        done += 1
    return done / (time.perf_counter() - start)


def demand(sample: Callable[[int], Any], steps: int) -> tuple[float, float, float]:
    """Samples per second that training takes here, operations per sample, and the share of time waiting for data."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from bundle.networks.precision import resolve_precision
    from bundle.networks.presets import build_restorer
    from bundle.training.optim import build_optimizer
    from bundle.training.phases import Phase
    from bundle.training.step import TrainingStep

    restorer = build_restorer("small")
    multipliers = {"unet": 1.0, "vae_encoder": 0.1, "vae_decoder": 0.1, "refiner": 2.0}
    losses = {"unrefined": 0.3, "refined": 1.0, "reconstruction": 1.0}
    step = TrainingStep(restorer, precision=resolve_precision("auto", torch.device("cpu")))
    step.set_phase(Phase(name="joint", epochs=1, multipliers=multipliers, losses=losses))
    optimizer = build_optimizer(restorer, learning_rate=1e-4)

    def batch(number: int) -> dict[str, Any]:
        items = [sample(number * BATCH + k) for k in range(BATCH)]
        return {key: torch.stack([item[key] for item in items]) for key in items[0]}

    def train(content: dict[str, Any]) -> None:
        optimizer.zero_grad(set_to_none=True)
        step(content)["loss"].backward()
        optimizer.step()

    first = batch(0)
    restorer.measure(first["image"], first["label"], first["noise_level"])
    with FlopCounterMode(display=False) as counter:
        train(first)
    waited = worked = 0.0
    for number in range(1, steps + 1):
        start = time.perf_counter()
        content = batch(number)
        middle = time.perf_counter()
        train(content)
        waited, worked = waited + middle - start, worked + time.perf_counter() - middle
    return steps * BATCH / (waited + worked), counter.get_total_flops() / BATCH, waited / (waited + worked)


@dataclasses.dataclass(frozen=True)
class Load:
    """How busy the machine was, and how much of it this process got."""

    runnable: tuple[float, float]
    wall_seconds: float
    cpu_seconds: float

    @classmethod
    def now(cls) -> "Load":
        """Load average of the last minute, time of the wall's clock and of this process."""
        load = os.getloadavg()[0]
        return cls((load, load), time.perf_counter(), time.process_time())

    def since(self, before: "Load") -> "Load":
        """What lies between two moments."""
        return Load(
            (before.runnable[0], self.runnable[1]),
            self.wall_seconds - before.wall_seconds,
            self.cpu_seconds - before.cpu_seconds,
        )

    @property
    def line(self) -> str:
        """In words."""
        first, last = self.runnable
        share = self.cpu_seconds / self.wall_seconds
        return (
            f"{self.wall_seconds:.0f} s; load average {first:.1f} before and {last:.1f} at the end on "
            f"{os.cpu_count()} cores; this process had {share:.2f} cores"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data_dir", type=Path, default=ROOT / ".cache" / "sample_data", help="folder of DICOM series")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each of the three")
    parser.add_argument("--steps", type=int, default=3, help="training steps")
    parser.add_argument("--output", type=Path, default=None, help="a JSON file")
    options = parser.parse_args()

    import torch

    begun = Load.now()
    with tempfile.TemporaryDirectory() as folder:
        prepared = cases(options.data_dir, Path(folder) / "cache")
        rows = {
            "this bundle": rate(ours(prepared), options.seconds),
            "CacheDataset": rate(monais(prepared, persistent=None), options.seconds),
            "PersistentDataset": rate(monais(prepared, persistent=Path(folder) / "monai"), options.seconds),
        }
        taken, operations, waiting = demand(ours(prepared), options.steps)
    gpu = GPU_PEAK_TFLOPS * GPU_SHARE * 1e12 / operations
    shapes = ", ".join("x".join(map(str, case.shape)) for case in prepared)
    print(
        f"{len(prepared)} series ({shapes}); patches of {PATCH} x {PATCH} x {SLICES}; {torch.get_num_threads()} threads"
    )
    for name, value in rows.items():
        print(f"{name:20} {value:8.1f} samples/s")
    print(f"training small here takes {taken:.2f} samples/s and waits for data {100 * waiting:.1f} % of its time")
    print(
        f"one 80 GB GPU would take {gpu:.0f} samples/s (calculated: {operations / 1e12:.2f} TFLOP per sample, "
        f"{GPU_PEAK_TFLOPS:g} TFLOP/s at {100 * GPU_SHARE:.0f} %), {gpu / rows['this bundle']:.1f} of these processes"
    )
    load = Load.now().since(begun)
    print(load.line)
    if options.output:
        content = {"samples_per_second": rows, "taken": taken, "waiting": waiting, "gpu_samples_per_second": gpu}
        content |= {"load": dataclasses.asdict(load)}
        options.output.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main()
    except BundleError as error:
        sys.exit(report(error))
