"""What GroupNorm costs where tiles meet: networks that have it on a stack of slices as a whole, and in tiles.

    python scripts/measure_norms.py --dataset_dir SERIES --weights_file RUN/model.pt [--preset full_quarter] [--steps 4]

A row each for the stack as a whole, for tiles whose norms take the statistics of their own window, and for tiles that
share them (networks.shared_norms), of the autoencoder alone (decode(encode(x))) and of the restoration. Columns: root
mean square difference from the input in the body; mean absolute difference from the whole where tiles fade into each
other and elsewhere; the largest mean shift of a tile; and the step across the borders of tiles relative to the step
between neighbours elsewhere, over the same ratio of the whole. Noise is drawn by position: it is the same in all rows.
"""

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import torch
from measure_tiles import figures, restored

from bundle.data.sources import find_cases
from bundle.dicom.index import read_volume
from bundle.networks.presets import PRESETS, build_restorer
from bundle.networks.restorer import Restorer
from bundle.networks.weights import load_weights
from bundle.restoration.inferer import RestorationInferer
from bundle.restoration.region import touchable
from bundle.restoration.tiles import Span


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", required=True)
    parser.add_argument("--preset", default="full_quarter")
    parser.add_argument("--weights_file", type=Path, required=True)
    parser.add_argument("--tile_size", type=int, nargs=3, help="H, W, D; the preset's own")
    parser.add_argument("--slices", type=int, default=16)
    parser.add_argument("--size", type=int, default=256, help="rows and columns, in the middle")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--num_threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.num_threads)
    network = build_restorer(options.preset).eval()
    load_weights(network, options.weights_file)
    volume = read_volume(find_cases(options.dataset_dir).cases[0].files)
    box = tuple(slice((n - options.size) // 2, (n + options.size) // 2) for n in volume.shape[:2])
    box = (*box, slice(options.slices))
    hu, body = torch.from_numpy(volume.array[box].copy()), touchable(volume.array[..., box[2]])[box[:2]]
    tile = tuple(options.tile_size or PRESETS[options.preset].tile_size)
    cut = inferer(options, tile)
    axes = [cut.spans(axis, 0, size, multiple=network.multiple) for axis, size in enumerate(hu.shape)]
    print(f"{tuple(hu.shape)} voxels, tiles of {tile}: {[len(spans) for spans in axes]}")
    print("                                 from input  at borders  elsewhere  largest shift  step ratio")
    for name, run in (("autoencoder", reconstruction), (f"{options.steps} steps", restoration(volume.spacing_mm))):
        whole = run(network, hu, inferer(options, tuple(hu.shape)))
        print(f"{name + ', whole':32} {difference(whole, hu, body):10.2f}", flush=True)
        for norms in ("by their own", "shared"):
            tiled = run(network if norms == "shared" else by_themselves(network), hu, cut)
            _, at, elsewhere, shift, ratio = figures(tiled, axes, whole, hu, body)
            cells = f"{difference(tiled, hu, body):10.2f} {at:11.2f} {elsewhere:10.2f} {shift:14.2f} {ratio:11.3f}"
            print(f"{name + ', norms ' + norms:32} {cells}", flush=True)


def inferer(options: argparse.Namespace, tile_size: tuple[int, ...]) -> RestorationInferer:
    """That cuts into such tiles."""
    return RestorationInferer(tile_size=tile_size, steps=options.steps, mixed_precision="off", slices_at_once=0)


def reconstruction(network: Restorer, hu: torch.Tensor, cut: RestorationInferer) -> torch.Tensor:
    """decode(encode(hu)), (H, W, D)."""
    return cut.reconstruct(hu[None, None], network)[0, 0]


def restoration(
    spacing_mm: tuple[float, ...],
) -> Callable[[Restorer, torch.Tensor, RestorationInferer], torch.Tensor]:
    """A draw (H, W, D), of voxels of that size."""

    def run(network: Restorer, hu: torch.Tensor, cut: RestorationInferer) -> torch.Tensor:
        found: tuple[torch.Tensor, list[list[Span]]] = restored(network, hu, spacing_mm, cut)
        return found[0]

    return run


def by_themselves(network: Restorer) -> Restorer:
    """The same network, of the same weights, with norms that keep to their window."""
    alone = copy.copy(network)
    object.__setattr__(alone, "window_norms", list)
    return alone


def difference(one: torch.Tensor, other: torch.Tensor, body: object) -> float:
    """Root mean square in the body, HU."""
    return float((one - other)[torch.as_tensor(body)].square().mean().sqrt())


if __name__ == "__main__":
    main()
