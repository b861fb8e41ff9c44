"""How much our trainer costs beside a bare PyTorch loop over the same networks, and what a step takes.

Run by `make bench-train`. Data lie in memory. Times are CPU seconds of one thread on a CPU, so that other programs
on the machine count little, and wall seconds on a GPU. Our step and the bare one take turns in one run.
"""

import argparse
import copy
import itertools
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events

from bundle.errors import report
from bundle.networks.precision import resolve_precision
from bundle.networks.presets import build_restorer
from bundle.training import execution, memory
from bundle.training.monitor import Monitor
from bundle.training.optim import MovingAverage, build_optimizer
from bundle.training.phases import PhasePlan
from bundle.training.sinks import make_sinks
from bundle.training.step import TrainingStep
from bundle.training.trainer import BundleTrainer

PHASE = {  # the last one of configs/train.yaml, where everything trains
    "name": "joint",
    "epochs": 1,
    "multipliers": {"unet": 1.0, "vae_encoder": 0.1, "vae_decoder": 0.1, "refiner": 2.0},
    "losses": {"unrefined": 0.3, "refined": 1.0, "reconstruction": 1.0},
}
WARM_UP = 2  # steps that are not counted


class InMemory:
    """Random patches, made once."""

    parts = ()

    def __init__(self, patch: tuple[int, int, int], length: int) -> None:
        self.patch, self.length = patch, length
        generator = torch.Generator().manual_seed(0)
        label = 200 * torch.randn((1, *patch), generator=generator)
        self.item = {
            "image": label + 20 * torch.randn(label.shape, generator=generator),
            "label": label,
            "spacing_mm": torch.tensor([0.75, 0.75, 2.0]),
            "noise_level": torch.full((patch[2],), 20.0),
        }

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: object) -> dict[str, torch.Tensor]:
        return self.item


def make_trainer(options: argparse.Namespace, steps: int, **settings: Any) -> BundleTrainer:
    torch.manual_seed(0)
    batch, patch = settings.pop("batch", options.batch_size), settings.pop("patch", options.patch_size)
    accumulation = settings.pop("accumulation", 1)
    restorer = build_restorer(options.preset)
    precision = resolve_precision(options.mixed_precision, options.device)
    average = MovingAverage(restorer, decay=0.998)
    execution.prepare(restorer, **settings)
    return BundleTrainer(
        TrainingStep(restorer, precision=precision),
        average=average,
        optimizer=build_optimizer(restorer, learning_rate=1.0e-4),
        plan=PhasePlan([PHASE]),
        dataset=InMemory((patch, patch, options.num_slices), steps * batch),  # type: ignore[arg-type]
        batch_size=batch,
        device=options.device,
        seed=0,
        learning_rate=1.0e-4,
        accumulation_steps=accumulation,
    )


def bare_step(trainer: BundleTrainer) -> Callable[[], None]:
    """What a user would write: forward, backward, AdamW; a copy of the same networks."""
    step = copy.deepcopy(trainer.step)
    step.set_phase(trainer.plan.phases[0])
    optimizer = build_optimizer(step.restorer, learning_rate=1.0e-4)
    data = trainer.dataset
    size = trainer.batch_size

    def take() -> None:
        items = [data[0] for _ in range(size)]
        batch = {key: torch.stack([item[key] for item in items]).to(trainer.state.device) for key in items[0]}
        optimizer.zero_grad(set_to_none=True)
        step(batch)["loss"].backward()
        optimizer.step()

    return take


def clock(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def resident(key: str) -> int:
    """Bytes of this process in memory: VmRSS now, VmHWM at most (proc_pid_status(5); getrusage counts the parent's)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{key}:")).split()[1])


def overhead(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds per step of ours, with its log files, and of the bare loop, by turns."""
    trainer = make_trainer(options, options.steps + WARM_UP)
    trainer.measure_latents()
    bare = bare_step(trainer)
    ours, theirs = [], []
    mark = [0.0]

    def turn(_: object) -> None:
        end = clock(options.device)
        bare()
        after = clock(options.device)
        ours.append(end - mark[0])
        theirs.append(after - end)
        mark[0] = after

    with tempfile.TemporaryDirectory() as folder:
        Monitor(make_sinks(Path(folder), pictures=False)).attach(trainer)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, turn)
        mark[0] = clock(options.device)
        trainer.run()
    ours, theirs = ours[WARM_UP:], theirs[WARM_UP:]
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {
        "ours_s": statistics.median(ours),
        "bare_s": statistics.median(theirs),
        "overhead_percent": 100 * (statistics.median(ratios) - 1),
    }


def measured(options: argparse.Namespace, **settings: Any) -> dict[str, Any]:
    """Seconds per step and peak memory of a few steps in a process of its own."""
    bare = settings.pop("bare", False)
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_measure, args=(theirs, options, settings, bare))
    process.start()
    found: dict[str, Any] = ours.recv()
    process.join()
    return found


def _measure(pipe: Any, options: argparse.Namespace, settings: dict[str, Any], bare: bool) -> None:
    torch.set_num_threads(1)
    count = settings.get("accumulation", 1)
    trainer = make_trainer(options, (WARM_UP + 2) * count, **settings)
    estimate = memory.estimate_bytes(trainer)
    trainer.restorer.measured.fill_(True)  # measuring the latents would be the peak
    cuda = options.device.startswith("cuda")
    start = torch.cuda.memory_allocated() if cuda else resident("VmRSS")
    times = [clock(options.device)]
    if bare:
        take = bare_step(trainer)
        for _ in range(WARM_UP + 2):
            take()
            times.append(clock(options.device))
    else:
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED(every=count), lambda _: times.append(clock(options.device))
        )
        trainer.run()
    peak = torch.cuda.max_memory_allocated() if cuda else resident("VmHWM")
    steps = [b - a for a, b in itertools.pairwise(times)][WARM_UP:]
    pipe.send(
        {
            "seconds": statistics.median(steps),
            "peak_mib": peak / 2**20,
            "added_mib": (peak - start) / 2**20,
            "estimate_mib": estimate / 2**20,
        }
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--mixed_precision", default="off")
    parser.add_argument("--patch_size", type=int, default=64)
    parser.add_argument("--num_slices", type=int, default=8)
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        found: dict[str, Any] = {"overhead": overhead(options), "rows": []}
        line = found["overhead"]
        print(f"step: ours {line['ours_s']:.3f} s, bare loop {line['bare_s']:.3f} s: {line['overhead_percent']:+.1f} %")
        patch, batch = options.patch_size, options.batch_size
        rows: list[tuple[str, dict[str, Any]]] = [
            ("bare loop", {"bare": True}),
            ("ours", {}),
            ("ours, activation checkpointing", {"activation_checkpointing": True}),
            (f"ours, batch 1 accumulated {batch} times", {"batch": 1, "accumulation": batch}),
            (f"ours, patch {patch}, batch {2 * batch}", {"batch": 2 * batch}),
            (f"ours, patch {2 * patch}, batch 1", {"patch": 2 * patch, "batch": 1}),
        ]
        for name, settings in rows:
            row = measured(options, **settings)
            found["rows"].append({"name": name, **row})
            print(
                f"{name}: {row['seconds']:.3f} s per step, peak {row['peak_mib']:.0f} MiB, of these "
                f"{row['added_mib']:.0f} MiB by training, estimated {row['estimate_mib']:.0f} MiB",
                flush=True,
            )
        if options.output:
            options.output.write_text(json.dumps(found, indent=2) + "\n")
    except (Exception, KeyboardInterrupt) as error:
        return report(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
