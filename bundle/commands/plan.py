"""What a restoration would do, and about how long and how much memory it would take."""

import copy
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser

from bundle.configuration import require_apart
from bundle.data.sources import Case, Source
from bundle.dicom.geometry import grid_spacing_mm, slices_last
from bundle.dicom.index import only_series
from bundle.dicom.thin_slices import ThinSlices
from bundle.errors import BundleError
from bundle.networks.precision import prepare_cpu
from bundle.networks.restorer import Restorer
from bundle.pages import plain_pages
from bundle.restoration.draws import STEPS_OF_A_LEG
from bundle.restoration.inferer import RestorationInferer
from bundle.restoration.outputs import RunOutput
from bundle.restoration.tiles import plain

# Voxels: long enough to time, short enough to wait for. Slices that flow are timed flowing, which costs more a slice:
# a plane of so many pixels, and a few slices more than would go through whole.
_TIMED_SHAPE = (128, 128, 8)
_TIMED_PIXELS, _TIMED_SLICES = 256, 4
_TIMED_ROUNDS, _LONG_ENOUGH = 2, 10.0  # seconds of a first round that make a second one needless
# Rounded up from peaks on a CPU with bfloat16 (scripts/bench_memory.py, scripts/bench_inference.py --memory), which
# tests/commands/test_plan.py lists: the process itself, and a tile's voxels, in float32 and in half precision. Where
# slices flow, a pixel of the plane holds what waits for other slices, and what each slice of a pass takes; how it goes
# with slices_at_once and steps is from trials that no command repeats, and of `full` float32 alone was measured.
_BASE_GB = 0.8


@dataclass(frozen=True)
class _Bytes:
    """What a network takes, bytes.

    Attributes:
        tile: for each voxel of a tile that goes through whole.
        waiting: for each pixel of a plane whose slices flow.
        step: the same, more for each further step of a leg.
        flowing: the same, for each slice at once.
    """

    tile: int
    waiting: int
    step: int
    flowing: int


_FULL = _Bytes(tile=6_500, waiting=112_000, step=16_000, flowing=2_000)
_BYTES = {  # by preset, and whether in half precision
    "small": {
        False: _Bytes(tile=390, waiting=3_500, step=3_400, flowing=640),
        True: _Bytes(tile=300, waiting=2_600, step=2_300, flowing=330),
    },
    "full": {False: _FULL, True: _FULL},
}
_BYTES_PER_SLICE = 300_000  # of 512 x 512: headers, and more (docs/inference.md); the voxels lie on disk


def make_plan(config_files: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Index the input, time the network on one small tile, and add it up.

    Args:
        config_files: the inference config.
        options: keys of it, dataset_dir and output_dir among them.

    Returns:
        The selected series with sizes, tiles, and estimated seconds; keys of those that are finished; refused ones with
        reasons; memory in GB. Nothing is written.

    Raises:
        BundleError: when there is nothing to restore or an option is wrong.
    """
    require_apart(dataset_dir=options["dataset_dir"], output_dir=options["output_dir"])
    parser = ConfigParser()
    parser.read_config(list(config_files))
    parser.update(dict(options))
    prepare_cpu(parser.get_parsed_content("threads"))  # as the run does, or the trial times something else
    source: Source = parser.get_parsed_content("source")
    network, inferer = _built(parser)
    output: RunOutput = parser.get_parsed_content("output")
    finished = [case.key for case in source.cases if output.finished(case)]
    grids, refused = _grids(
        [case for case in source.cases if case.key not in finished],
        gaps=parser.get_parsed_content("gaps"),
        thin=parser.get_parsed_content("thin"),
        pixdim=parser.get_parsed_content("spacing_mm"),
    )
    per_voxel = seconds_per_voxel(network, inferer)
    series = [_planned(key, grid, inferer, network, per_voxel) for key, grid in grids.items()]
    memory = [_memory_gb(grid, network, inferer, str(parser.get_parsed_content("preset"))) for grid in grids.values()]
    return {
        "series": series,
        "finished": finished,
        "refused": [{"key": one.key, "reason": one.reason} for one in source.refused if not one.foreign] + refused,
        "steps": inferer.steps,
        "num_samples": inferer.num_samples,
        "flips": inferer.flips,
        "device": str(inferer.device),
        "number_format": str(inferer.precision.dtype or torch.float32).removeprefix("torch."),
        "estimated_seconds": round(sum(one["estimated_seconds"] for one in series)),
        "estimated_memory_gb": round(max(memory, default=0.0), 1),
    }


def seconds_per_voxel(network: Restorer, inferer: RestorationInferer) -> float:
    """Time the restoration of a small volume, as configured; seconds per voxel that goes through the network.

    Where slices flow, a draw is timed in as many steps as are taken in one go; further ones and further draws are
    rounds of the same.
    """
    inferer = copy.copy(inferer)
    inferer.scratch = plain_pages  # nothing is written, and the output folder need not be there yet
    rows, columns, _ = inferer.tile_size
    shape = (min(rows, _TIMED_PIXELS), min(columns, _TIMED_PIXELS), inferer.most_whole + _TIMED_SLICES)
    rounds = 1.0
    if not inferer.flows(network, shape):
        shape = _TIMED_SHAPE
    elif inferer.steps > 1:
        steps = min(inferer.steps, STEPS_OF_A_LEG)
        rounds = inferer.steps / steps * inferer.num_samples
        inferer.steps, inferer.num_samples = steps, 1
    rng = np.random.default_rng(0)
    volume = torch.from_numpy((40 + 20 * rng.standard_normal(shape)).astype(np.float32))
    seconds = []
    for _ in range(_TIMED_ROUNDS):  # the first one pays for what is set up once
        started = time.perf_counter()
        for _piece in inferer.pieces(volume, network, spacing_mm=torch.tensor([0.8, 0.8, 2.0])):
            pass
        seconds.append(time.perf_counter() - started)
        if seconds[0] > _LONG_ENOUGH:
            break
    return rounds * min(seconds) / volume.numel()


def spoken(plan: Mapping[str, Any]) -> str:
    """The plan as a person reads it."""
    done = f", skip {len(plan['finished'])} that are done" if plan["finished"] else ""
    lines = [
        f"would restore {len(plan['series'])} series{done}, and refuse {len(plan['refused'])}; nothing was written"
    ]
    for one in plan["series"]:
        size = " x ".join(map(str, one["size"]))
        lines.append(f"  {one['key']}  {size}  {one['tiles']} tiles, about {_duration(one['estimated_seconds'])}")
    lines += [f"  {one['key'] or '-':16}  refused: {one['reason']}" for one in plan["refused"]]
    how = f"{plan['steps']} steps, {plan['num_samples']} samples, {plan['flips']} flips"
    how += f", {plan['device']} in {plan['number_format']}"
    lines.append(
        f"{how}: at most about {_duration(plan['estimated_seconds'])}, {plan['estimated_memory_gb']} GB of memory"
        + ("" if plan["device"] == "cpu" else ", as a CPU takes")
    )
    return "\n".join(lines)


def _built(parser: ConfigParser) -> tuple[Restorer, RestorationInferer]:
    parser.get_parsed_content("weights_digest")
    network: Restorer = parser.get_parsed_content("engine")
    inferer: RestorationInferer = parser.get_parsed_content("inferer")
    return network.to(inferer.device).eval(), inferer


@dataclass(frozen=True)
class _Grid:
    """A series as it will be restored.

    Attributes:
        size: H, W, D.
        network_size: the same on the grid that the network sees (`spacing_mm`).
    """

    size: tuple[int, int, int]
    network_size: tuple[int, int, int]


def _memory_gb(grid: _Grid, network: Restorer, inferer: RestorationInferer, preset: str) -> float:
    half = inferer.precision.dtype is not None
    taken = _BYTES["full" if preset.startswith("full") else "small"][half]
    sides = [min(length, most) for length, most in zip(grid.network_size, inferer.tile_size, strict=True)]
    plane = math.prod(sides[:2])
    if inferer.flows(network, grid.network_size):
        more_steps = min(inferer.steps, STEPS_OF_A_LEG) - 1
        tiles = plane * (taken.waiting + more_steps * taken.step + inferer.slices_at_once * taken.flowing)
    else:
        tiles = plane * sides[2] * inferer.tile_batch_size * taken.tile
    parameters = sum(parameter.numel() for parameter in network.parameters())
    weights = parameters * (6 if half else 4)  # a copy in the other number format is kept beside them
    study = grid.size[2] * _BYTES_PER_SLICE
    return _BASE_GB + (tiles + weights + study) / 1e9


def _planned(key: str, grid: _Grid, inferer: RestorationInferer, network: Restorer, per_voxel: float) -> dict[str, Any]:
    spans = [inferer.spans(axis, 0, grid.network_size[axis], multiple=network.multiple) for axis in range(3)]
    if inferer.flows(network, grid.network_size):
        spans[2] = [plain(0, grid.network_size[2])]
    voxels = math.prod(sum(span.stop - span.start for span in axis) for axis in spans)
    tiles = math.prod(len(axis) for axis in spans)
    return {"key": key, "size": list(grid.size), "tiles": tiles, "estimated_seconds": round(voxels * per_voxel)}


def _grids(
    cases: Sequence[Case], *, gaps: str, thin: ThinSlices | None, pixdim: Sequence[float]
) -> tuple[dict[str, _Grid], list[dict[str, str]]]:
    """Key to grid, and what cannot be restored; from headers alone."""
    grids, refused = {}, []
    for case in cases:
        try:
            (rows, columns, depth), spacing_mm, resampled = _nifti(case) if case.is_nifti else _dicom(case, gaps)
            if thin is not None:
                thick = depth
                depth = thin.count(thick, spacing_mm[2], resampled=resampled)
                spacing_mm = (*spacing_mm[:2], spacing_mm[2] * (thick - 1) / max(depth - 1, 1))
        except BundleError as error:
            refused.append({"key": case.key, "reason": error.message})
            continue
        size = (rows, columns, depth)
        seen = [round(n * mm / to) if to > 0 else n for n, mm, to in zip(size, spacing_mm, pixdim, strict=True)]
        network_size = (max(seen[0], 1), max(seen[1], 1), max(seen[2], 1))
        grids[case.key] = _Grid(size, network_size)
    return grids, refused


def _dicom(case: Case, gaps: str) -> tuple[tuple[int, int, int], tuple[float, float, float], bool]:
    """Size, spacing in mm, and whether it is resampled for its gaps."""
    series = only_series(case.files, gaps=gaps)
    return series.shape, series.spacing_mm, series.grid is not None


def _nifti(case: Case) -> tuple[tuple[int, int, int], tuple[float, float, float], bool]:
    import nibabel

    image: Any = nibabel.load(case.files[0])  # type: ignore[attr-defined]
    axes = slices_last(image.affine)
    rows, columns, depth = (image.shape[axis] for axis in axes)
    return (rows, columns, depth), grid_spacing_mm(image.affine[:, [*axes, 3]]), False


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
