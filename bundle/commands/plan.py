"""What a restoration would do, and about how long and how much memory it would take."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser

from bundle.configuration import require_apart
from bundle.data.sources import Case, Source
from bundle.dicom.geometry import grid_spacing_mm
from bundle.dicom.index import find_series
from bundle.dicom.thin_slices import ThinSlices
from bundle.errors import BundleError
from bundle.networks.restorer import Restorer
from bundle.restoration.inferer import RestorationInferer

_TIMED_SHAPE = (128, 128, 8)  # voxels: long enough to time, short enough to wait for
_TIMED_ROUNDS = 2
# Rounded up from scripts/bench_inference.py --memory (`small` on a CPU): the process itself, and a tile's voxels.
_BASE_GB = 1.0
_BYTES_PER_TILE_VOXEL = 500
_BYTES_PER_SLICE = 300_000  # of 512 x 512: headers, and more (docs/inference.md); the voxels lie on disk


def make_plan(config_files: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Index the input, time the network on one small tile, and add it up.

    Args:
        config_files: the inference config.
        options: keys of it, dataset_dir and output_dir among them.

    Returns:
        The selected series with sizes, tiles, and estimated seconds; refused ones with reasons; memory in GB. Nothing
        is written.

    Raises:
        BundleError: when there is nothing to restore or an option is wrong.
    """
    require_apart(dataset_dir=options["dataset_dir"], output_dir=options["output_dir"])
    parser = ConfigParser()
    parser.read_config(list(config_files))
    parser.update(dict(options))
    source: Source = parser.get_parsed_content("source")
    gaps = parser.get_parsed_content("gaps")
    network, inferer = _built(parser)
    per_voxel = seconds_per_voxel(network, inferer)
    sizes, refused = _sizes(
        source.cases, Path(options["dataset_dir"]), gaps=gaps, thin=parser.get_parsed_content("thin")
    )
    series = [_planned(key, size, inferer, network.multiple, per_voxel) for key, size in sizes.items()]
    return {
        "series": series,
        "refused": [{"key": one.key, "reason": one.reason} for one in source.refused if not one.foreign] + refused,
        "steps": inferer.steps,
        "num_samples": inferer.num_samples,
        "flips": inferer.flips,
        "device": str(inferer.device),
        "number_format": str(inferer.precision.dtype or torch.float32).removeprefix("torch."),
        "estimated_seconds": round(sum(one["estimated_seconds"] for one in series)),
        "estimated_memory_gb": round(max((_memory_gb(one["size"], inferer) for one in series), default=0.0), 1),
    }


def seconds_per_voxel(network: Restorer, inferer: RestorationInferer) -> float:
    """Time the restoration of a small volume, as configured; seconds per voxel that goes through the network."""
    rng = np.random.default_rng(0)
    volume = torch.from_numpy((40 + 20 * rng.standard_normal(_TIMED_SHAPE)).astype(np.float32))
    seconds = []
    for _ in range(_TIMED_ROUNDS):  # the first one pays for what is set up once
        started = time.perf_counter()
        for _piece in inferer.pieces(volume, network, spacing_mm=torch.tensor([0.8, 0.8, 2.0])):
            pass
        seconds.append(time.perf_counter() - started)
    return min(seconds) / volume.numel()


def spoken(plan: Mapping[str, Any]) -> str:
    """The plan as a person reads it."""
    lines = [f"would restore {len(plan['series'])} series, and refuse {len(plan['refused'])}; nothing was written"]
    for one in plan["series"]:
        size = " x ".join(map(str, one["size"]))
        lines.append(f"  {one['key']}  {size}  {one['tiles']} tiles, about {_duration(one['estimated_seconds'])}")
    lines += [f"  {one['key'] or '-':16}  refused: {one['reason']}" for one in plan["refused"]]
    how = f"{plan['steps']} steps, {plan['num_samples']} samples, {plan['flips']} flips"
    how += f", {plan['device']} in {plan['number_format']}"
    lines.append(
        f"{how}: at most about {_duration(plan['estimated_seconds'])}, {plan['estimated_memory_gb']} GB of memory"
    )
    return "\n".join(lines)


def _built(parser: ConfigParser) -> tuple[Restorer, RestorationInferer]:
    parser.get_parsed_content("weights_digest")
    network: Restorer = parser.get_parsed_content("engine")
    inferer: RestorationInferer = parser.get_parsed_content("inferer")
    return network.to(inferer.device).eval(), inferer


def _memory_gb(size: Sequence[int], inferer: RestorationInferer) -> float:
    tile = math.prod(min(length, most) for length, most in zip(size, inferer.tile_size, strict=True))
    return _BASE_GB + (tile * inferer.tile_batch_size * _BYTES_PER_TILE_VOXEL + size[2] * _BYTES_PER_SLICE) / 1e9


def _planned(
    key: str, size: tuple[int, int, int], inferer: RestorationInferer, multiple: int, per_voxel: float
) -> dict[str, Any]:
    spans = [inferer.spans(axis, 0, length, multiple=multiple) for axis, length in enumerate(size)]
    voxels = np.prod([sum(span.stop - span.start for span in axis) for axis in spans])
    tiles = int(np.prod([len(axis) for axis in spans]))
    return {"key": key, "size": list(size), "tiles": tiles, "estimated_seconds": round(float(voxels) * per_voxel)}


def _sizes(
    cases: Sequence[Case], folder: Path, *, gaps: str, thin: ThinSlices | None
) -> tuple[dict[str, tuple[int, int, int]], list[dict[str, str]]]:
    """Key to H, W, D as they will be restored, and what has no grid of thin slices; from headers alone."""
    if not cases:
        return {}, []
    if cases[0].files[0].lower().endswith((".nii", ".nii.gz")):
        import nibabel

        images: dict[str, Any] = {case.key: nibabel.load(case.files[0]) for case in cases}  # type: ignore[attr-defined]
        found = {key: (image.shape[:3], grid_spacing_mm(image.affine)[2], False) for key, image in images.items()}
    else:
        index = {series.key: series for series in find_series(folder, gaps=gaps).series}
        chosen = [index[case.key] for case in cases]
        found = {one.key: (one.shape, one.spacing_mm[2], one.grid is not None) for one in chosen}
    sizes, refused = {}, []
    for key, ((rows, columns, depth), spacing_mm, resampled) in found.items():
        try:
            sizes[key] = rows, columns, depth if thin is None else thin.count(depth, spacing_mm, resampled=resampled)
        except BundleError as error:
            refused.append({"key": key, "reason": error.message})
    return sizes, refused


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
