"""Write the card of weights (models/model.json): task, checksum, domain, and a calibrated uncertainty.

    python scripts/describe_weights.py --dataset_dir CT --validation_folders rider_pilot_0117 crlm_1004 \
        [--outside_domain FOLDER] [--weights_file models/model.pt] [--steps 4] [--num_samples 8] [--size 512] \
        [--slices 3] [--gaps resample]

The domain is the range of each property over all series, training and validation, but those of `--outside_domain`; the
noise reaches up to that of a tenth of the dose. The calibration simulates a quarter of the dose, as training does, on
slabs of the validation series (whole slices, unless `--size` takes the middle of them) and measures, first per latent
channel what one step leaves unknown, then how often the full-dose scan lies within 1, 2 and 3 calibrated deviations of
the mean of the samples. With `--task thin --slice_thickness_mm 3 5` thick slices take the place of low dose, and series
that are as thick already are left out: the first thickness calibrates, and from the least to the largest goes the slice
thickness of the domain, because that of a series to be made thin is the thick slices'. A calibrated deviation is

    sqrt((1 + 1/n) ((scale * deviation of n samples)^2 + (floor * noise level of the slice)^2 + constant_hu^2)),

fitted so that the squared errors of coverage at 1 and 2 deviations, a percent of the first weighing as much as two
thirds of one of the second, are least over the series. Stored are the coverage of each series with that fit, and with
what was fitted to the others.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bundle.configuration import bundle_root
from bundle.data.sources import find_cases
from bundle.degrade.low_dose import Scanner, apply_dose, unit_noise_volume
from bundle.degrade.slabs import ThickSlices
from bundle.dicom.index import read_volume
from bundle.dicom.volume import Volume
from bundle.diffusion.bridge import BrownianBridge
from bundle.files import file_digest, write_json
from bundle.metrics.coverage import NORMAL_COVERAGE
from bundle.metrics.noise import noise_level
from bundle.networks.presets import PRESETS, build_restorer
from bundle.networks.restorer import Restorer
from bundle.networks.weights import load_weights
from bundle.restoration.data_consistency import DataConsistency
from bundle.restoration.domain import PROPERTIES, measure
from bundle.restoration.inferer import RestorationInferer
from bundle.restoration.pooling import pooled
from bundle.restoration.region import touchable
from bundle.restoration.registry import TASKS, card_path

MARGIN = {"noise_hu": 0.2, "noise_frequency_per_mm": 0.1, "pixel_mm": 0.1, "slice_mm": 0.1, "thickness_mm": 0.1}
FRACTION_MARGIN = {"lung_fraction": 0.02, "bone_fraction": 0.02, "metal_fraction": 0.001}
LOWEST_DOSE, CALIBRATED_DOSE = 0.1, 0.25
SCANNER = Scanner(calibrate_noise=True)  # as in training: dose 1 is the noise that the series has
VOXELS = 20_000  # of each series that the coverage is counted over
SCALES, FLOORS, CONSTANTS_HU = np.linspace(0.0, 2.0, 21), np.linspace(0.0, 1.0, 21), np.linspace(0.0, 6.0, 25)
GRIDS = {"scale": SCALES, "floor": FLOORS, "constant_hu": CONSTANTS_HU}
AIMS = np.array([0.03, 0.02])  # errors of coverage at 1 and 2 deviations that are as bad as each other


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", required=True)
    parser.add_argument("--validation_folders", nargs="+", required=True)
    parser.add_argument("--outside_domain", nargs="*", default=[], help="folders that calibrate only")
    parser.add_argument("--weights_file", default=str(Path(bundle_root()) / "models" / "model.pt"))
    parser.add_argument("--preset", default="small")
    parser.add_argument("--name", default="small")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--num_samples", type=int, default=8)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--slices", type=int, default=3)
    parser.add_argument("--gaps", default="refuse")
    parser.add_argument("--task", choices=TASKS, default="denoise")
    parser.add_argument("--slice_thickness_mm", type=float, nargs="+", default=[5.0])
    parser.add_argument("--num_threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.num_threads)
    network = build_restorer(options.preset).eval()
    load_weights(network, options.weights_file)
    cases = find_cases(options.dataset_dir, gaps=options.gaps).cases
    volumes = [read_volume(case.files, gaps=options.gaps) for case in cases]
    used = [options.task == "denoise" or thick(options).changes(volume.spacing_mm[2]) for volume in volumes]
    names = [Path(case.label).name for case in cases]
    inside = [use and name not in options.outside_domain for use, name in zip(used, names, strict=True)]
    domain = measured_domain([volume for volume, use in zip(volumes, inside, strict=True) if use], options)
    validation = [
        volume
        for volume, name, use in zip(volumes, names, used, strict=True)
        if use and name in options.validation_folders
    ]
    card: dict[str, Any] = {
        "schema": 1,
        "name": options.name,
        "task": options.task,
        "sampler": "bridge" if isinstance(network.process, BrownianBridge) else "ddim",
        "sha256": file_digest(Path(options.weights_file)),
        "domain": domain,
        "uncertainty": calibration(network, validation, options),
    }
    write_json(card_path(options.weights_file), card)
    print(json.dumps(card, indent=2))


def measured_domain(volumes: list[Volume], options: argparse.Namespace) -> dict[str, Any]:
    """Property -> [lowest, highest] over the series, widened a little; words for the contrast medium."""
    found = [measure(volume, volume.headers[0]) for volume in volumes]
    domain: dict[str, Any] = {"contrast": sorted({one["contrast"] for one in found})}
    for name in PROPERTIES:
        values = [one[name] for one in found if isinstance(one[name], int | float)]
        if not values:
            continue
        low, high = min(values), max(values)
        if name == "thickness_mm" and options.task == "thin":
            low, high = min(options.slice_thickness_mm), max(options.slice_thickness_mm)
        if name == "noise_hu":
            poorest = [poorest_noise(volume, options) for volume in volumes]
            low, high = min(low, *poorest), max(high, *poorest)
        if name in MARGIN:
            domain[name] = [round(low * (1 - MARGIN[name]), 4), round(high * (1 + MARGIN[name]), 4)]
        else:
            domain[name] = [round(max(low - FRACTION_MARGIN[name], 0), 4), round(high + FRACTION_MARGIN[name], 4)]
    return domain


def poorest_noise(volume: Volume, options: argparse.Namespace) -> float:
    """Noise level in HU of the middle slice as poor as is trained on."""
    poor, _ = degraded(volume, volume.shape[2] // 2, 1, options, dose=LOWEST_DOSE, seed=0)
    return float(noise_level(poor)[0])


def thick(options: argparse.Namespace) -> ThickSlices:
    """What thick slices are simulated."""
    return ThickSlices(thickness_mm=options.slice_thickness_mm[0])


def degraded(
    volume: Volume, first: int, depth: int, options: argparse.Namespace, *, dose: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Slices of a series, (H, W, depth) HU: poor, at a dose or of thick slices, and as they are."""
    margin = thick(options).margin(volume.spacing_mm[2]) if options.task == "thin" else 0
    low, high = max(first - margin, 0), min(first + depth + margin, volume.shape[2])
    hu = np.stack([volume.slice_hu(k) for k in range(low, high)], axis=2)
    inner = slice(first - low, first - low + depth)
    if options.task == "thin":
        return thick(options).apply(hu, step_mm=volume.spacing_mm[2], first=low)[:, :, inner], hu[:, :, inner]
    noises = unit_noise_volume(hu, spacing_mm=volume.spacing_mm, seed=seed, scanner=SCANNER)
    return apply_dose(hu, *noises, dose=dose), hu


def calibration(network: Restorer, volumes: list[Volume], options: argparse.Namespace) -> dict[str, Any]:
    """What one step leaves unknown, scale and floor of the deviation, and the coverage with those of the others."""
    parts = [slab(volume, options) for volume in volumes]
    residual = np.sqrt(np.mean([unknown(network, part) ** 2 for part in parts], axis=0))
    if isinstance(network.process, BrownianBridge):
        network.process = dataclasses.replace(network.process, residual_std=tuple(residual.tolist()))
    tables = [coverage_table(*errors(network, part, options), samples=options.num_samples) for part in parts]
    chosen = fitted(tables)
    left_outs = [left_out(tables, k) for k in range(len(tables))] if len(tables) > 1 else []
    return {
        "meaning": "a scan at the training targets' dose lies within k times the calibrated deviation, which is "
        "sqrt((1 + 1/n) ((scale * deviation of n samples, pooled over neighbours)^2 "
        "+ (floor * the slice's noise level)^2 + constant_hu^2))",
        "steps": options.steps,
        "num_samples": options.num_samples,
        **({"dose": CALIBRATED_DOSE} if options.task == "denoise" else {"thickness_mm": options.slice_thickness_mm[0]}),
        "residual_std": [round(float(value), 4) for value in residual],
        **{name: round(float(grid[k]), 4) for (name, grid), k in zip(GRIDS.items(), chosen, strict=True)},
        "coverage_unscaled": by_deviations(np.mean([table[index_of(SCALES, 1.0), 0, 0] for table in tables], axis=0)),
        "coverage": by_deviations(np.stack([table[chosen] for table in tables], axis=1)),
        **({"coverage_left_out": by_deviations(np.stack(left_outs, axis=1))} if left_outs else {}),
        "coverage_normal": {str(k): value for k, value in NORMAL_COVERAGE.items()},
    }


@dataclasses.dataclass(frozen=True)
class Slab:
    """Central part of a series: degraded and clean, HU (size, size, slices), and what is known of it."""

    poor: np.ndarray
    clean: np.ndarray
    noise_hu: np.ndarray  # (slices,), of the degraded
    spacing_mm: tuple[float, float, float]
    first: int  # number of its first slice in the series


def slab(volume: Volume, options: argparse.Namespace) -> Slab:
    """As many slices as asked for, from the middle of a series and of each slice."""
    depth = min(options.slices, volume.shape[2])
    first = (volume.shape[2] - depth) // 2
    poor, hu = degraded(volume, first, depth, options, dose=CALIBRATED_DOSE, seed=1)
    start = [(size - options.size) // 2 // 16 * 16 for size in hu.shape[:2]]
    part = tuple(slice(s, s + options.size) for s in start)
    return Slab(poor[part], hu[part], noise_level(poor), volume.spacing_mm, first)


@torch.inference_mode()
def unknown(network: Restorer, part: Slab) -> np.ndarray:
    """Root mean square of (clean - predicted latent) / spread, one number per latent channel."""
    x, target = (network.units.from_hu(torch.from_numpy(hu)[None, None]) for hu in (part.poor, part.clean))
    spacing_mm = torch.tensor([part.spacing_mm], dtype=torch.float32)
    conditions = network.conditions(x, spacing_mm, torch.from_numpy(part.noise_hu)[None])
    latent = network.process.restore(
        lambda z, t: network.predict(conditions, z, t), conditions.latent, conditions.spread
    )
    error = (network.autoencoder.encode(target) - latent) / conditions.spread
    result: np.ndarray = error.square().mean(dim=(0, 2, 3, 4)).sqrt().numpy()
    return result


def errors(network: Restorer, part: Slab, options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """|clean - mean|, the samples' deviation pooled over neighbours, the slice's noise level: HU, of the body."""
    tiles = PRESETS[options.preset].tile_size
    inferer = RestorationInferer(tile_size=tiles, steps=options.steps, num_samples=options.num_samples)
    pieces = inferer.pieces(
        torch.from_numpy(part.poor),
        network,
        spacing_mm=torch.tensor(part.spacing_mm),
        noise_level=torch.from_numpy(part.noise_hu),
    )
    difference, deviation = (
        torch.cat(parts, -1).numpy() for parts in zip(*((p.difference, p.deviation) for p in pieces), strict=True)
    )
    deviation = np.stack([pooled(deviation[:, :, k]) for k in range(deviation.shape[2])], axis=2)
    error = part.poor + difference - part.clean
    if options.task == "thin":  # data consistency takes away what the thick slices gainsay
        place = {"count": error.shape[2], "step_mm": part.spacing_mm[2], "first": part.first}
        averages = thick(options).slab_weights(**place)[thick(options).whole(**place)]
        error += DataConsistency(averages, averages).change(error, np.zeros_like(error))
    body = touchable(part.clean)
    chosen = np.random.default_rng(0).permutation(int(body.sum()))[:VOXELS]
    maps = (np.abs(error), deviation, np.broadcast_to(part.noise_hu, error.shape))
    size, spread, noise = (np.asarray(one)[body][chosen].astype(np.float32) for one in maps)
    return size, spread, noise


def coverage_table(error: np.ndarray, deviation: np.ndarray, noise: np.ndarray, *, samples: int) -> np.ndarray:
    """Share of voxels within 1, 2 and 3 calibrated deviations, (SCALES, FLOORS, CONSTANTS_HU, 3)."""
    squares = [values.astype(np.float32) ** 2 for values in (error, deviation, noise)]
    squares[0] /= 1 + 1 / samples
    table = np.empty((*(len(grid) for grid in GRIDS.values()), len(NORMAL_COVERAGE)))
    for i, j, k in np.ndindex(table.shape[:3]):
        variance = SCALES[i] ** 2 * squares[1] + FLOORS[j] ** 2 * squares[2] + CONSTANTS_HU[k] ** 2
        standardised = squares[0] / np.maximum(variance, 1e-6)
        table[i, j, k] = [np.count_nonzero(standardised <= width**2) / error.size for width in NORMAL_COVERAGE]
    return table


def fitted(tables: list[np.ndarray]) -> tuple[int, int, int]:
    """Numbers of the scale, floor and constant with the least error of coverage, series weighing the same."""
    normal = np.array(list(NORMAL_COVERAGE.values()))
    error = sum((((table - normal)[..., :2] / AIMS) ** 2).sum(axis=-1) for table in tables)
    i, j, k = np.unravel_index(np.argmin(error), np.shape(error))
    return int(i), int(j), int(k)


def left_out(tables: list[np.ndarray], number: int) -> np.ndarray:
    """Coverage (3,) of one of several series with what was fitted to the others."""
    covered: np.ndarray = tables[number][fitted([table for k, table in enumerate(tables) if k != number])]
    return covered


def by_deviations(values: np.ndarray) -> dict[str, Any]:
    """Numbers by "1", "2" and "3" deviations, rounded."""
    return {str(k): np.round(one, 4).tolist() for k, one in zip(NORMAL_COVERAGE, values, strict=True)}


def index_of(values: np.ndarray, wanted: float) -> int:
    """Where a grid has its value nearest to `wanted`."""
    return int(np.abs(values - wanted).argmin())


if __name__ == "__main__":
    main()
