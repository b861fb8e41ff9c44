"""How much memory a training step takes, estimated before the first one without computing it."""

import copy
import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from bundle.configuration import flag
from bundle.errors import BundleError
from bundle.training import distributed
from bundle.training.step import TrainingStep
from bundle.training.trainer import BundleTrainer

logger = logging.getLogger(__name__)

# Beside what is kept: gradients on their way, workspaces of convolutions. Up to so much was measured (bench-train).
_ALLOWANCE = 1.5


def require_memory(trainer: BundleTrainer, *, check: bool | str = True) -> bool:
    """Refuse a training whose step would not fit into the memory that is free.

    Raises:
        BundleError: names estimate, free memory and what to reduce.
    """
    if not flag(check):
        return True
    needed, free = estimate_bytes(trainer), free_bytes(trainer.state.device)
    if distributed.rank() == 0:
        logger.info("a step takes about %.1f GiB, %.1f GiB are free", needed / 2**30, free / 2**30)
    if needed > free:
        raise BundleError(
            f"a training step takes about {needed / 2**30:.1f} GiB, but only {free / 2**30:.1f} GiB are free",
            hint="reduce batch_size (and raise gradient_accumulation_steps), patch_size or num_slices, or use "
            "--activation_checkpointing true; --check_memory false goes on regardless",
        )
    return True


def estimate_bytes(trainer: BundleTrainer) -> int:
    """Memory in bytes that training adds to what the networks and their average hold already.

    Gradients and the optimizer's two moments for all that ever trains, and what the largest phase's forward pass
    keeps for its gradient, counted on tensors without content.
    """
    trains = frozenset[str]().union(*(phase.trains for phase in trainer.plan.phases))
    groups = trainer.restorer.groups()
    weights = sum(p.numel() * p.element_size() for name in trains for p in groups[name])
    largest = 0
    for phase in trainer.plan.phases:
        trainer.step.set_phase(phase)
        largest = max(largest, _activations(trainer.step, trainer.dataset.patch, trainer.batch_size))
    return round(_ALLOWANCE * (3 * weights + largest))


def free_bytes(device: torch.device) -> int:
    """Free memory of a GPU, or of this machine or container."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        values = dict(line.split(":") for line in meminfo.read_text().splitlines() if ":" in line)
        free = int(values["MemAvailable"].split()[0]) * 1024
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free


def _activations(step: TrainingStep, patch: tuple[int, int, int], batch_size: int) -> int:
    """Bytes that a forward pass keeps, each storage counted once, weights left out."""
    with torch.no_grad():
        step.restorer.autoencoder.only_changes_basis()  # tensors without content do not tell
    kept: dict[int, int] = {}
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    device = next(step.parameters()).device
    with mode:  # a copy whose tensors have no content; the real ones must not know of it
        tensors = [*step.parameters(), *step.buffers()]
        memo: dict[int, Any] = {
            id(value): torch.empty(value.shape, dtype=value.dtype, device=device, requires_grad=value.requires_grad)
            for value in tensors
        }
        for value in step.parameters():
            memo[id(value)] = torch.nn.Parameter(memo[id(value)], requires_grad=value.requires_grad)
    weights = {_storage(memo[id(value)])[0] for value in tensors}
    fake = copy.deepcopy(step, memo)
    # Held, so that no storage's place is taken by another's.
    alive: list[Any] = []

    def pack(value: torch.Tensor) -> torch.Tensor:
        place, size = _storage(value)
        if place not in weights:
            kept[place] = size
            alive.append(value)
        return value

    with mode:
        shape = (batch_size, 1, *patch)
        batch = {
            "image": torch.zeros(shape, device=device),
            "label": torch.zeros(shape, device=device),
            "spacing_mm": torch.ones(batch_size, 3, device=device),
            "noise_level": torch.ones(batch_size, patch[2], device=device),
        }
        with saved_tensors_hooks(pack, lambda value: value):
            losses = fake(batch)
    del losses
    return sum(kept.values())


def _storage(value: torch.Tensor) -> tuple[int, int]:
    storage = value.untyped_storage()
    return storage._cdata, storage.nbytes()
