"""Everything that an exact resume needs, as tensors and plain types (contract 7), and what must fit for one."""

import logging
import math
import platform
from typing import Any

import monai
import torch

import bundle
from bundle.errors import BundleError
from bundle.files import digest
from bundle.training.trainer import BundleTrainer

logger = logging.getLogger(__name__)

FORMAT = 1
# What the configs call a setting that a checkpoint keeps under another name.
_KEYS = {
    "accumulation_steps": "gradient_accumulation_steps",
    "epoch_length": "steps per epoch (steps_per_epoch, or by the data, patch_size and num_slices)",
    "patch": "patch_size and num_slices",
    "training_data": "set of training series",
}


def trainer_state(trainer: BundleTrainer) -> dict[str, Any]:
    """The trainer's state between two optimizer steps."""
    adversary = trainer.step.adversary.state_dict()
    return {
        "format": FORMAT,
        "network": trainer.restorer.state_dict(),
        "ema": trainer.average.module.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.loss_scaler.state_dict(),
        **({"adversary": adversary} if adversary else {}),
        "trainer": {
            "iteration": trainer.state.iteration,
            "epoch_length": trainer.epoch_length,
            "epochs_done": trainer.epochs_done,
            "skipped_steps": trainer.skipped_steps,
            "skipped_total": trainer.skipped_total,
        },
        "meta": {
            **_identity(trainer),
            "world_size": trainer.begun_with,
            "begun_by_weights": trainer.begun_by_weights,
            "phase": trainer.phase.name,
            "settings": settings_digest(trainer),
            **versions(),
        },
    }


def restore_state(
    trainer: BundleTrainer, saved: dict[str, Any], *, name: str, allow_world_size_change: bool = False
) -> None:
    """Put a saved state into the trainer.

    Raises:
        BundleError: when it is of another format, other networks, or another run's settings.
    """
    if saved.get("format") != FORMAT:
        raise BundleError(f"checkpoint '{name}' is not one of this bundle's", hint="check --resume")
    meta = saved["meta"]
    _take_world_size(trainer, meta, name=name, allowed=allow_world_size_change)
    for key, now in _identity(trainer).items():
        then = meta.get(key, now)  # a version before may not have kept it
        if then != now:
            raise BundleError(
                f"checkpoint '{name}' was made with another {_KEYS.get(key, key)}: {then}, this run has {now}",
                hint="set it back, use another output_dir, or take only its weights with --resume_weights_only true",
            )
    trainer.begun_by_weights = bool(meta.get("begun_by_weights"))
    if meta.get("settings", settings_digest(trainer)) != settings_digest(trainer):
        logger.warning("phases or rates differ from those of %s: the run goes on with the new ones", name)
    _load_networks(trainer, saved, name=name)
    trainer.optimizer.load_state_dict(saved["optimizer"])
    trainer.loss_scaler.load_state_dict(saved["scaler"])
    if "adversary" in saved:
        trainer.step.adversary.load_state_dict(saved["adversary"], trainer.state.device)
    counters = saved["trainer"]
    trainer.state.iteration = counters["iteration"]
    trainer.state.epoch = trainer.state.iteration // trainer.epoch_length
    if trainer.state.iteration >= trainer.total:  # a plan in steps may have ended within an epoch
        trainer.state.epoch = math.ceil(trainer.state.iteration / trainer.epoch_length)
    trainer.epochs_done = counters.get("epochs_done", trainer.state.epoch)
    trainer.skipped_steps = counters.get("skipped_steps", 0)
    trainer.skipped_total = counters.get("skipped_total", 0)


def restore_weights(trainer: BundleTrainer, saved: dict[str, Any], *, name: str) -> None:
    """Take the weights and their average from a saved state, and begin a run of other settings with them.

    Raises:
        BundleError: when it is of another format or other networks.
    """
    if saved.get("format") != FORMAT:
        raise BundleError(f"checkpoint '{name}' is not one of this bundle's", hint="check --resume")
    _load_networks(trainer, saved, name=name)
    trainer.begun_by_weights = True
    logger.info("weights taken from %s; step, optimizer and schedule begin anew", name)


def _load_networks(trainer: BundleTrainer, saved: dict[str, Any], *, name: str) -> None:
    try:
        trainer.restorer.load_state_dict(saved["network"])
        trainer.average.module.load_state_dict(saved["ema"])
    except RuntimeError as error:
        raise BundleError(
            f"checkpoint '{name}' is of other networks: {_difference(saved['network'], trainer.restorer.state_dict())}",
            hint="use the preset and windows it was made with, or start from what fits of it: --resume off "
            "--weights_file FILE",
        ) from error


def versions() -> dict[str, str]:
    """Versions of what computes: for the record, not compared."""
    return {
        "bundle_version": bundle.__version__,
        "torch_version": str(torch.__version__),
        "monai_version": str(monai.__version__),
        "python_version": platform.python_version(),
    }


def settings_digest(trainer: BundleTrainer) -> str:
    """Digest of the phases and rates: what may be changed between two parts of a run, but should not by accident."""
    return digest(
        repr(
            [
                (phase.name, sorted(phase.multipliers.items()), sorted(phase.losses.items()))
                for phase in trainer.plan.phases
            ]
        ),
        repr((trainer.base_rate, trainer.warmup_steps, trainer.schedule_name, trainer.final_rate, trainer.clip_norm)),
    )


def _identity(trainer: BundleTrainer) -> dict[str, Any]:
    """Settings that must be the same for a resume to continue the same run."""
    return {
        "seed": trainer.seed,
        "batch_size": trainer.batch_size,
        "accumulation_steps": trainer.accumulation_steps,
        "patch": list(trainer.dataset.patch),
        "training_data": trainer.dataset.source.identity,
        "epoch_length": trainer.epoch_length,  # last: it follows from the others
    }


def _take_world_size(trainer: BundleTrainer, meta: dict[str, Any], *, name: str, allowed: bool) -> None:
    """Go on with another number of processes: the same global batches, cut into other shares.

    Iterations, epochs, phases, rates and noise stay those of the run; only the order of additions differs.
    """
    then, now = meta["world_size"], trainer.sampler.world_size
    if then == now:
        return
    if not allowed:
        raise BundleError(
            f"checkpoint '{name}' was made with another number of processes: {then}, this run has {now}",
            hint=f"start {then}, or add --allow_world_size_change true (same global batch, but not bit-exact)",
        )
    whole = meta["batch_size"] * then
    if whole % now:
        possible = ", ".join(str(number) for number in range(1, whole + 1) if whole % number == 0)
        raise BundleError(
            f"the global batch of {whole} of checkpoint '{name}' cannot be shared by {now} processes",
            hint=f"start one of {possible}",
        )
    trainer.begun_with = then
    trainer.sampler.batch_size = whole // now
    trainer.sampler.steps = meta["epoch_length"]
    trainer.dataset.length = meta["epoch_length"] * whole
    trainer.state.epoch_length = meta["epoch_length"]
    trainer.state.max_epochs = math.ceil(trainer.total / trainer.epoch_length)
    logger.warning(
        "begun with %d processes, goes on with %d: the global batch of %d stays, bit-exactness does not",
        then,
        now,
        whole,
    )


def _difference(saved: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> str:
    """The first tensor that is missing or of another shape."""
    for name in own:
        if name not in saved:
            return f"it has no '{name}'"
        if saved[name].shape != own[name].shape:
            return f"'{name}' is {tuple(saved[name].shape)}, here {tuple(own[name].shape)}"
    return f"'{next((name for name in saved if name not in own), '?')}' is not here"
