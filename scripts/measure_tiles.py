"""What cutting costs in exactness: weights on a whole stack of slices against slices that flow, and tiles.

    python scripts/measure_tiles.py --dataset_dir SERIES [--slices 72] [--size 512] [--steps 1]

The weights are the shipped ones, or others (`--preset full_quarter --weights_file RUN/model.pt`).
First how far a slice differs from the whole's by its distance from a cut through the stack: what the overlap along
slices is chosen by. Then a table, for tiles in plane as well that `--size` is larger than: voxels computed for each
one restored; the mean absolute difference from the whole where tiles fade into each other, in plane or along slices
(or passes of flowing slices meet), and elsewhere in the body; the largest mean shift
of any tile; and the step across the borders of tiles relative to the step between neighbours elsewhere, over the same
ratio of the whole's restoration.
"""

import argparse
import itertools
import math
from pathlib import Path

import numpy as np
import torch

from bundle.configuration import bundle_root
from bundle.data.sources import find_cases
from bundle.dicom.index import read_volume
from bundle.networks.presets import build_restorer
from bundle.networks.restorer import Restorer
from bundle.networks.weights import load_weights
from bundle.restoration.inferer import RestorationInferer
from bundle.restoration.region import touchable
from bundle.restoration.tiles import Span, plain

FLOWING = [4, 16]  # slices at once; the first is the default
# Tile sizes and the slices that neighbours repeat; the first is the default of networks whose slices cannot flow.
TILES = [((512, 512, 40), 20), ((512, 512, 32), 16), ((512, 512, 24), 8), ((512, 512, 16), 8), ((512, 512, 8), 4)]
IN_PLANE = [((512, 512, 40), 20), ((256, 256, 40), 20), ((128, 128, 40), 20)]  # where that is a cut through the plane
DISTANCES = 14


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", required=True)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--weights_file", type=Path, default=Path(bundle_root()) / "models" / "model.pt")
    parser.add_argument("--slices", type=int, default=72)
    parser.add_argument("--size", type=int, default=512, help="rows and columns; mirrored where the series has fewer")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--num_samples", type=int, default=1)
    parser.add_argument("--overlap", type=float, default=0.25)
    parser.add_argument("--num_threads", type=int, default=1)
    parser.add_argument("--mixed_precision", default="off")
    options = parser.parse_args()
    torch.set_num_threads(options.num_threads)
    network = build_restorer(options.preset).eval()
    load_weights(network, options.weights_file)
    network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    volume = read_volume(find_cases(options.dataset_dir).cases[0].files)
    values = volume.array[..., : options.slices]
    values = np.pad(values, [*((0, max(options.size - n, 0)) for n in volume.shape[:2]), (0, 0)], mode="symmetric")
    middle = [slice(max(n - options.size, 0) // 2, (n + options.size) // 2) for n in values.shape[:2]]
    hu, body = torch.from_numpy(values[tuple(middle)].copy()), touchable(values)[tuple(middle)]
    how = f"steps {options.steps}, samples {options.num_samples}, mixed_precision {options.mixed_precision}"
    print(f"{tuple(hu.shape)} voxels, {how}")
    size = tuple(hu.shape)
    whole, _ = restored(network, hu, volume.spacing_mm, make_inferer(options, tile_size=size))
    change = float((whole - hu)[body].abs().mean())
    print(f"the restoration changes the body by {change:.2f} HU on average")
    two = make_inferer(options, tile_size=(*size[:2], -(-size[2] // 2)), slice_overlap=0)
    halves, _ = restored(network, hu, volume.spacing_mm, two)
    print("difference by slices from a cut (RMS, HU):", *(f"{value:.4f}" for value in by_distance(halves, whole, body)))
    print("tile         overlap  computed  at borders  elsewhere  largest shift  step ratio   (1, 1, HU, HU, HU, 1)")
    ways: list[tuple[str, str, RestorationInferer]] = [
        (f"{count} flowing", "-", make_inferer(options, slices_at_once=count, tile_size=(512, 512, 1), slice_overlap=0))
        for count in FLOWING
    ]
    ways += [
        ("x".join(map(str, tile)), str(overlap), make_inferer(options, tile_size=tile, slice_overlap=overlap))
        for tile, overlap in [*TILES, *(one for one in IN_PLANE if max(one[0][:2]) < min(size[:2]))]
    ]
    for name, overlap, inferer in ways:
        row = figures(*restored(network, hu, volume.spacing_mm, inferer), whole, hu, body)
        cells = "{:9.2f} {:11.6f} {:10.6f} {:14.4f} {:11.3f}".format(*row)
        print(f"{name:12} {overlap:>7} {cells}", flush=True)


def make_inferer(options: argparse.Namespace, *, slices_at_once: int = 0, **cut: object) -> RestorationInferer:
    """That cuts as it is told."""
    return RestorationInferer(
        overlap=options.overlap,
        steps=options.steps,
        num_samples=options.num_samples,
        mixed_precision=options.mixed_precision,
        slices_at_once=slices_at_once,
        **cut,  # type: ignore[arg-type]
    )


def restored(
    network: Restorer, hu: torch.Tensor, spacing_mm: tuple, inferer: RestorationInferer
) -> tuple[torch.Tensor, list[list[Span]]]:
    """The restoration (H, W, D), and how rows, columns and slices were cut: slices that flow into passes."""
    result, passes = hu.float().clone(), []
    for piece in inferer.pieces(hu, network, spacing_mm=torch.tensor(spacing_mm)):
        result[..., piece.slices] += piece.difference
        if count := piece.difference.shape[-1]:  # none while a round goes on
            passes.append(plain(piece.first, piece.first + count))
    axes = [inferer.spans(axis, 0, size, multiple=network.multiple) for axis, size in enumerate(hu.shape)]
    return result, [*axes[:2], passes] if inferer.flows(network, hu.shape) else axes


def by_distance(halves: torch.Tensor, whole: torch.Tensor, body: np.ndarray) -> list[float]:
    """Root mean square difference in the body, by the distance from the cut in the middle of two halves, in slices."""
    middle = -(-whole.shape[2] // 2)
    error = (halves - whole).numpy()
    found = []
    for distance in range(min(DISTANCES, whole.shape[2] - middle)):
        both = [middle - 1 - distance, middle + distance]
        found.append(float(np.sqrt((error[..., both][body[..., both]] ** 2).mean())))
    return found


def figures(
    tiled: torch.Tensor, axes: list[list[Span]], whole: torch.Tensor, hu: torch.Tensor, body: np.ndarray
) -> list[float]:
    """Numbers of one row of the table."""
    fades = [fading(spans, size) for spans, size in zip(axes, hu.shape, strict=True)]
    border = fades[0][:, None, None] | fades[1][None, :, None] | fades[2][None, None, :]
    error = (tiled - whole).numpy()
    at, elsewhere = (np.abs(error[body & mask]).mean() if (body & mask).any() else np.nan for mask in (border, ~border))
    shifts = [
        abs(error[box][body[box]].mean())
        for r in axes[0]
        for c in axes[1]
        for k in axes[2]
        if body[box := tuple(slice(span.start, span.stop) for span in (r, c, k))].sum() > 1000
    ]
    ratio = step_ratio((tiled - hu).numpy(), body, fades) / step_ratio((whole - hu).numpy(), body, fades)
    computed = math.prod(sum(s.stop - s.start for s in axis) / n for axis, n in zip(axes, hu.shape, strict=True))
    return [computed, at, elsewhere, max(shifts, default=np.nan), ratio]


def fading(spans: list[Span], size: int) -> np.ndarray:
    """Where along an axis (size,) two tiles have a share, or touch."""
    mixed = np.zeros(size, bool)
    for span in spans:
        mixed[span.start : span.stop] |= (span.weight > 1e-3) & (span.weight < 1 - 1e-3)
    for one, other in itertools.pairwise(spans):
        if one.stop == other.start:
            mixed[one.stop - 1 : one.stop + 1] = True
    return mixed


def step_ratio(change: np.ndarray, body: np.ndarray, fades: list[np.ndarray]) -> float:
    """Root mean square step of the change between neighbours across fading voxels over that elsewhere (worst axis)."""
    ratios = [1.0]
    for axis, mixed in enumerate(fades):
        if not mixed.any():
            continue
        step = np.diff(change, axis=axis)
        inside = body.take(range(body.shape[axis] - 1), axis) & body.take(range(1, body.shape[axis]), axis)
        at = np.expand_dims(mixed[1:] | mixed[:-1], [a for a in range(3) if a != axis])
        if at.all():
            continue
        ratios.append(float(np.sqrt((step[inside & at] ** 2).mean() / (step[inside & ~at] ** 2).mean())))
    return max(ratios, key=lambda ratio: abs(np.log(ratio)))


if __name__ == "__main__":
    main()
