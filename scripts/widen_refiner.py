"""Weights of the former, narrower refiner as weights of today's: python scripts/widen_refiner.py OLD.pt NEW.pt.

The refiner of `small` and `full` had 12, 24 and 48 channels and saw the anatomy in units of 1000 HU; now it has 16, 32
and 64 and sees it in units of 250 HU. The result computes the same, to rounding: what the new channels give goes
nowhere until a training makes use of it (Chen et al. 2016, Net2Net, arXiv:1511.05641). Takes flat weights.
"""

import argparse
from pathlib import Path

import torch

from bundle.errors import BundleError, report
from bundle.files import whole_file
from bundle.networks.presets import PRESETS
from bundle.networks.refiner import ANATOMY_SCALE, Refiner

PREFIX = "refiner."
FORMER_CHANNELS = (12, 24, 48)
_ANATOMY = 2  # number of that feature among the inputs


def widen(former: dict[str, torch.Tensor], *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return the refiner's state dict with today's channels.

    Args:
        former: the refiner's part of the weights, without its prefix.
        seed: of what the new channels start with.

    Raises:
        BundleError: when these are not weights of the former refiner.
    """
    torch.manual_seed(seed)
    refiner = Refiner(PRESETS["small"].refiner_features)
    fresh = refiner.state_dict()
    first = former.get("net.input_block.conv1.conv.weight")
    if former.keys() != fresh.keys() or first is None or len(first) != FORMER_CHANNELS[0]:
        raise BundleError("these are not weights of the former refiner", hint="use them as they are")
    refiner.load_state_dict({name: _widened(name, former[name], fresh[name].clone()) for name in fresh})
    state: dict[str, torch.Tensor] = refiner.state_dict()
    return state


def _widened(name: str, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    if name.endswith("bias"):
        return old
    old = old.clone()
    if "input_block.conv1" in name or name.startswith("net.skip_layers.downsample.conv1"):
        old[:, _ANATOMY] /= ANATOMY_SCALE
    if "transp_conv" in name:  # (in, out, ...), as of ConvTranspose3d
        new[: old.shape[0], : old.shape[1]] = old
        new[old.shape[0] :, : old.shape[1]] = 0
        return new
    halves = 2 if "conv_block.conv1" in name else 1  # of the upsampled and of the skipped
    before, after = old.shape[1] // halves, new.shape[1] // halves
    for half in range(halves):
        place = half * after
        new[: len(old), place : place + before] = old[:, half * before : (half + 1) * before]
        new[: len(old), place + before : place + after] = 0
    return new


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    try:
        state = torch.load(arguments.source, weights_only=True)
        former = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
        state |= {PREFIX + name: value for name, value in widen(former).items()}
        with whole_file(arguments.target) as temporary:
            torch.save(state, temporary)
    except Exception as error:
        return report(error)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
