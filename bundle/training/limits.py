"""What settings may be: each key's range, refused by name before anything is built or read."""

import math
from typing import Any

from bundle.errors import BundleError
from bundle.training.step import TrainingStep

# key: (lowest, highest, whole number); both ends are allowed.
_RANGES: dict[str, tuple[float, float, bool]] = {
    "learning_rate": (1.0e-9, 1.0e-2, False),
    "batch_size": (1, 4096, True),
    "gradient_accumulation_steps": (1, 4096, True),
    "num_slices": (1, 1024, True),
    "patch_size": (8, 4096, True),
    "steps_per_epoch": (0, 10**7, True),
    "num_workers": (0, 256, True),
    "checkpoint_every": (0, 10**7, True),
    "keep_checkpoints": (1, 1000, True),
    "val_interval": (1, 10**6, True),
    "validation_slices": (1, 4096, True),
    "streaming_epochs": (0.0, 10**6, False),
    "streaming_validation": (1, 10**6, True),
    "warmup_steps": (0, 10**7, True),
    "ema_decay": (0.0, 0.999999, False),
    "weight_decay": (0.0, 1.0, False),
    "clip_norm": (1.0e-6, 1.0e6, False),
    "loss_corner": (0.01, 1.0e6, False),
    "noisy_weight": (0, 4, False),
    "max_skipped_steps": (1, 10**6, True),
    "seed": (0, 2**63 - 1, True),
    "final_rate": (0.0, 1.0, False),
}


def require_ranges(**settings: Any) -> bool:
    """Refuse the first setting outside its range: `require_ranges(learning_rate=@learning_rate)` in a config.

    Raises:
        BundleError: names the key and its range.
    """
    for key, value in settings.items():
        lowest, highest, whole = _RANGES[key]
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not lowest <= value <= highest or (whole and value != int(value)):
            kind = "a whole number" if whole else "a number"
            raise BundleError(f"{key} must be {kind} from {lowest:g} to {highest:g}, not {value}")
    return True


def require_both_or_none(**settings: Any) -> bool:
    """Refuse one of several keys that only make sense together.

    Raises:
        BundleError: names the keys.
    """
    given = [key for key, value in settings.items() if value is not None]
    if given and len(given) < len(settings):
        missing = next(key for key in settings if key not in given)
        raise BundleError(f"{given[0]} is set without {missing}", hint=f"set {missing} too")
    return True


def require_trainable_patch(patch: tuple[int, int, int], step: TrainingStep) -> None:
    """Refuse patches that the networks cannot take, or whose gradients this machine computes wrongly.

    Raises:
        BundleError: names what can be used.
    """
    size, multiple = patch[0], step.restorer.multiple
    precision = step.precision
    if size % multiple:
        raise BundleError(
            f"patch_size {size} is no multiple of {multiple}", hint=f"use {-(-size // multiple) * multiple}"
        )
    # oneDNN's bfloat16 weight gradient of a 3D convolution is garbage where rows and columns are two
    # (torch 2.13 on an AVX512-BF16 processor): a level of the denoiser would see that.
    if size // multiple == 2 and precision.device_type == "cpu" and str(precision.dtype) == "torch.bfloat16":
        raise BundleError(
            f"patch_size {size} cannot be trained in bfloat16 on a CPU",
            hint=f"use --patch_size {4 * multiple} or --mixed_precision off",
        )
