"""Weights on disk: a flat state_dict of the Restorer, checked against its checksum where there is one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bundle.errors import BundleError
from bundle.files import file_digest, whole_file
from bundle.networks.compat import to_generative_keys

# Where networks of other programs go, by names that only they have; each is a list of keys of which one is enough.
_FOREIGN = {
    "autoencoder.net.": ("encoder.blocks.0.conv.weight", "encoder.blocks.0.conv.conv.weight"),
    "denoiser.net.": ("conv_in.conv.weight", "conv_in.weight"),
}
# MONAI core's AutoencoderKL keeps an upsampling's convolution one name apart (findings in docs/training.md).
_CORE_UPSAMPLING = (".postconv.conv.", ".conv.conv.")
_WRAPPERS = ("module.", "_orig_mod.", "model.")


@dataclass(frozen=True)
class LoadReport:
    """What starting weights filled, and what they did not.

    Attributes:
        name: of the file.
        digest: its SHA-256.
        layout: whose names it has.
        loaded: names of the network's tensors that were filled.
        left: names of the network's tensors that keep their start.
        unused: names in the file that the network has no place for.
        reshaped: name: (shape in the file, shape in the network), not loaded.
    """

    name: str
    digest: str
    layout: str
    loaded: tuple[str, ...]
    left: tuple[str, ...]
    unused: tuple[str, ...]
    reshaped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """One line."""
        text = f"{self.name} ({self.layout}): {len(self.loaded)} tensors loaded, {len(self.left)} keep their start"
        if self.left:
            parts = sorted({".".join(name.split(".")[:1]) for name in self.left})
            text += f" ({', '.join(parts)})"
        return f"{text}, {len(self.unused)} unused, {len(self.reshaped)} of another shape"

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return {
            "file": self.name,
            "sha256": self.digest,
            "layout": self.layout,
            "loaded": list(self.loaded),
            "keep_their_start": list(self.left),
            "unused": list(self.unused),
            "other_shape": {name: [list(a), list(b)] for name, (a, b) in self.reshaped.items()},
        }


def load_weights(network: nn.Module, path: str | Path) -> str:
    """Load a flat state_dict into `network`, all of it, and return the file's SHA-256.

    Raises:
        BundleError: when the file is missing, damaged, holds more than tensors, or is of another network.
    """
    path = Path(path)
    state = _read(path)
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise BundleError(
            f"weights_file '{path.name}' does not fit the network", hint="check preset and networks_from"
        ) from error
    return file_digest(path)


def load_starting_weights(network: nn.Module, path: str | Path) -> LoadReport:
    """Load what fits into `network` and say what did not; for training, where the rest is learned.

    Beside our own layouts: an autoencoder or a denoiser alone, in monai-generative's or MONAI core's names. Core's
    weights were made with `include_fc=False` or use of their output projection is lost: such a file is refused.

    Raises:
        BundleError: when the file is missing or damaged, fits nowhere, or is of a network that computes otherwise.
    """
    path = Path(path)
    state = _read(path)
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise BundleError(f"weights_file '{path.name}' does not fit the network", hint="it is no state_dict")
    own = network.state_dict()
    named, layout = _in_our_names(dict(state), own)
    if any(".out_proj." in name for name in named):
        raise BundleError(
            f"weights_file '{path.name}' is of a network with attention projections that this one does not have",
            hint="only MONAI core networks made with include_fc=False compute the same",
        )
    reshaped = {
        name: (tuple(value.shape), tuple(own[name].shape))
        for name, value in named.items()
        if name in own and value.shape != own[name].shape
    }
    fits = {name: value for name, value in named.items() if name in own and name not in reshaped}
    if not fits:
        raise BundleError(
            f"weights_file '{path.name}' does not fit the network: none of its {len(named)} tensors has a place",
            hint="check preset and networks_from",
        )
    network.load_state_dict({**own, **fits})
    return LoadReport(
        name=path.name,
        digest=file_digest(path),
        layout=layout,
        loaded=tuple(fits),
        left=tuple(name for name in own if name not in fits),
        unused=tuple(name for name in named if name not in own),
        reshaped=reshaped,
    )


def save_weights(network: nn.Module, path: Path) -> str:
    """Write a flat state_dict, as `models/model.pt` is, and return its SHA-256."""
    with whole_file(path) as temporary:
        torch.save({key: value.detach().cpu() for key, value in network.state_dict().items()}, temporary)
    return file_digest(path)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise BundleError(f"weights_file '{path.name}' does not exist", hint="train first, or name a file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise BundleError(f"weights_file '{path.name}' cannot be read", hint="it may be damaged") from error
    if isinstance(state, dict) and "ema" in state:  # a checkpoint: its averaged weights are what inference loads
        return state["ema"]
    for key in ("state_dict", "model", "autoencoder_state_dict", "unet_state_dict"):  # what other trainings write
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            return state[key]
    return state


def _in_our_names(
    state: dict[str, torch.Tensor], own: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], str]:
    """The tensors under the Restorer's names, and whose names they had."""
    for wrapper in _WRAPPERS:
        if state and all(name.startswith(wrapper) for name in state):
            state = {name.removeprefix(wrapper): value for name, value in state.items()}
    if any(name in own for name in state):
        return state, "this bundle's"
    for prefix, signs in _FOREIGN.items():
        if any(sign in state for sign in signs):
            core = any(".attn.to_q." in name or _CORE_UPSAMPLING[0] in name for name in state)
            renamed = to_generative_keys({"." + name: value for name, value in state.items()}) if core else state
            return {
                prefix + name.lstrip(".").replace(*_CORE_UPSAMPLING): value
                for name, value in renamed.items()
                if ".proj_attn." not in name
            }, ("MONAI core" if core else "monai-generative or core")
    return state, "unknown"
