"""Weights on disk: a flat state_dict of the Restorer, checked against its checksum where there is one."""

from pathlib import Path

import torch
from torch import nn

from bundle.errors import BundleError
from bundle.files import file_digest


def load_weights(network: nn.Module, path: str | Path) -> str:
    """Load a flat state_dict into `network`, all of it, and return the file's SHA-256.

    Raises:
        BundleError: when the file is missing, damaged, holds more than tensors, or is of another network.
    """
    path = Path(path)
    if not path.is_file():
        raise BundleError(f"weights_file '{path.name}' does not exist", hint="train first, or name a file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise BundleError(f"weights_file '{path.name}' cannot be read", hint="it may be damaged") from error
    if isinstance(state, dict) and "ema" in state:  # a checkpoint: its averaged weights are what inference loads
        state = state["ema"]
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise BundleError(
            f"weights_file '{path.name}' does not fit the network", hint="check preset and networks_from"
        ) from error
    return file_digest(path)
