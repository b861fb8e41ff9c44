"""What a chain of transforms is made of, as plain values: a change of any setting has to change the cache's key."""

import enum
import math
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch

_DEPTH = 12


def describe(value: Any, *, depth: int = _DEPTH) -> Any:
    """Plain values (for JSON) that differ where two objects, mostly transforms, are set differently.

    Objects are told by their class and all their attributes, however nested, except sources of randomness. So a setting
    that is changed anywhere in a config is noticed, and nobody has to list those that count.

    Args:
        value: what to describe.
        depth: how many levels of nesting are followed.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if depth == 0 or isinstance(value, np.random.RandomState | np.random.Generator | torch.Generator):
        return type(value).__name__
    if isinstance(value, np.ndarray | torch.Tensor):
        return describe(np.asarray(value).tolist(), depth=depth)
    if isinstance(value, enum.Enum | Path | np.generic | torch.dtype | np.dtype):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): describe(item, depth=depth - 1) for key, item in value.items()}
    if isinstance(value, Set):
        return sorted(str(item) for item in value)
    if isinstance(value, Sequence):
        return [describe(item, depth=depth - 1) for item in value]
    name = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    if isinstance(value, type) or (callable(value) and not hasattr(value, "__dict__")):
        return name
    return {"class": name, **describe(dict(getattr(value, "__dict__", {})), depth=depth - 1)}
