"""Write the card of weights (models/model.json): task, checksum, domain, and a calibrated uncertainty.

    python scripts/describe_weights.py --dataset_dir CT --validation_folders rider_pilot_0117 crlm_1004 \
        [--weights_file models/model.pt] [--steps 4] [--num_samples 8] [--size 192] [--slices 8] [--num_threads 1]

The domain is the range of each property over all series, training and validation, the noise reaching up to that of a
tenth of the dose. The calibration simulates a quarter of the dose on slabs of the validation series and measures, first
per latent channel what one step leaves unknown, then how often the full-dose scan lies within 1, 2 and 3 calibrated
deviations of the mean of the samples. The coverage that is stored is of a series with the scale of the others.
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
from bundle.dicom.index import read_volume
from bundle.dicom.volume import Volume
from bundle.diffusion.bridge import BrownianBridge
from bundle.files import file_digest, write_json
from bundle.metrics.noise import noise_level
from bundle.networks.presets import build_restorer
from bundle.networks.restorer import Restorer
from bundle.networks.weights import load_weights
from bundle.restoration.domain import PROPERTIES, measure
from bundle.restoration.inferer import RestorationInferer
from bundle.restoration.region import touchable
from bundle.restoration.registry import card_path

NORMAL_COVERAGE = {1: 0.6827, 2: 0.9545, 3: 0.9973}
MARGIN = {"noise_hu": 0.2, "noise_frequency_per_mm": 0.1, "pixel_mm": 0.1, "slice_mm": 0.1, "thickness_mm": 0.1}
FRACTION_MARGIN = {"lung_fraction": 0.02, "bone_fraction": 0.02, "metal_fraction": 0.001}
LOWEST_DOSE, CALIBRATED_DOSE = 0.1, 0.25


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", required=True)
    parser.add_argument("--validation_folders", nargs="+", required=True)
    parser.add_argument("--weights_file", default=str(Path(bundle_root()) / "models" / "model.pt"))
    parser.add_argument("--preset", default="small")
    parser.add_argument("--name", default="small")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--num_samples", type=int, default=8)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--slices", type=int, default=8)
    parser.add_argument("--num_threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.num_threads)
    network = build_restorer(options.preset).eval()
    load_weights(network, options.weights_file)
    cases = find_cases(options.dataset_dir).cases
    domain = measured_domain([read_volume(case.files) for case in cases])
    validation = [read_volume(c.files) for c in cases if Path(c.label).name in options.validation_folders]
    card: dict[str, Any] = {
        "schema": 1,
        "name": options.name,
        "task": "denoise",
        "sampler": "bridge" if isinstance(network.process, BrownianBridge) else "ddim",
        "sha256": file_digest(Path(options.weights_file)),
        "domain": domain,
        "uncertainty": calibration(network, validation, options),
    }
    write_json(card_path(options.weights_file), card)
    print(json.dumps(card, indent=2))


def measured_domain(volumes: list[Volume]) -> dict[str, Any]:
    """Property -> [lowest, highest] over the series, widened a little; words for the contrast medium."""
    found = [measure(volume, volume.headers[0]) for volume in volumes]
    domain: dict[str, Any] = {"contrast": sorted({one["contrast"] for one in found})}
    for name in PROPERTIES:
        values = [one[name] for one in found if isinstance(one[name], int | float)]
        if not values:
            continue
        low, high = min(values), max(values)
        if name == "noise_hu":
            high = max(high, *(low_dose_noise(volume) for volume in volumes))
        if name in MARGIN:
            domain[name] = [round(low * (1 - MARGIN[name]), 4), round(high * (1 + MARGIN[name]), 4)]
        else:
            domain[name] = [round(max(low - FRACTION_MARGIN[name], 0), 4), round(high + FRACTION_MARGIN[name], 4)]
    return domain


def low_dose_noise(volume: Volume) -> float:
    """Noise level in HU of the middle slice at the lowest dose that is trained on."""
    hu = volume.slice_hu(volume.shape[2] // 2)[:, :, None]
    quantum, electronic = unit_noise_volume(hu, spacing_mm=volume.spacing_mm, seed=0, scanner=Scanner())
    return float(noise_level(apply_dose(hu, quantum, electronic, dose=LOWEST_DOSE))[0])


def calibration(network: Restorer, volumes: list[Volume], options: argparse.Namespace) -> dict[str, Any]:
    """What one step leaves unknown, the scale of the deviation, and the coverage with the scale of the others."""
    pairs = [slab(volume, options) for volume in volumes]
    residual = np.sqrt(np.mean([unknown(network, *pair) ** 2 for pair in pairs], axis=0))
    if isinstance(network.process, BrownianBridge):
        network.process = dataclasses.replace(network.process, residual_std=tuple(residual.tolist()))
    scores = [standardised(network, *pair, options) for pair in pairs]
    coverage = []
    for number, own in enumerate(scores):
        others = [score for k, score in enumerate(scores) if k != number] or [own]
        coverage.append(covered(own / scale_of(others)))
    return {
        "meaning": "a scan at the training targets' dose lies within k times scale times the samples' deviation",
        "steps": options.steps,
        "num_samples": options.num_samples,
        "dose": CALIBRATED_DOSE,
        "residual_std": [round(float(value), 4) for value in residual],
        "scale": round(scale_of(scores), 4),
        "coverage_unscaled": covered(np.concatenate(scores)),
        "coverage_left_out": {str(k): [one[str(k)] for one in coverage] for k in NORMAL_COVERAGE},
        "coverage_normal": {str(k): value for k, value in NORMAL_COVERAGE.items()},
    }


def slab(volume: Volume, options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple]:
    """Central part of a series, (size, size, slices) HU: degraded and clean, noise levels (slices,), spacing in mm."""
    depth = min(options.slices, volume.shape[2])
    first = (volume.shape[2] - depth) // 2
    hu = np.stack([volume.slice_hu(k) for k in range(first, first + depth)], axis=2)
    noises = unit_noise_volume(hu, spacing_mm=volume.spacing_mm, seed=1, scanner=Scanner())
    degraded = apply_dose(hu, *noises, dose=CALIBRATED_DOSE)
    start = [(size - options.size) // 2 // 16 * 16 for size in hu.shape[:2]]
    part = tuple(slice(s, s + options.size) for s in start)
    return degraded[part], hu[part], noise_level(degraded), volume.spacing_mm


@torch.inference_mode()
def unknown(
    network: Restorer, degraded: np.ndarray, clean: np.ndarray, level: np.ndarray, spacing: tuple
) -> np.ndarray:
    """Root mean square of (clean - predicted latent) / spread, one number per latent channel."""
    x, target = (network.units.from_hu(torch.from_numpy(hu)[None, None]) for hu in (degraded, clean))
    conditions = network.conditions(x, torch.tensor([spacing], dtype=torch.float32), torch.from_numpy(level)[None])
    latent = network.process.restore(
        lambda z, t: network.predict(conditions, z, t), conditions.latent, conditions.spread
    )
    error = (network.autoencoder.encode(target) - latent) / conditions.spread
    result: np.ndarray = error.square().mean(dim=(0, 2, 3, 4)).sqrt().numpy()
    return result


def standardised(
    network: Restorer,
    degraded: np.ndarray,
    clean: np.ndarray,
    level: np.ndarray,
    spacing: tuple,
    options: argparse.Namespace,
) -> np.ndarray:
    """|clean - mean| / deviation of the body's voxels."""
    inferer = RestorationInferer(steps=options.steps, num_samples=options.num_samples, mixed_precision="off")
    pieces = inferer.pieces(
        torch.from_numpy(degraded), network, spacing_mm=torch.tensor(spacing), noise_level=torch.from_numpy(level)
    )
    difference, deviation = (
        torch.cat(parts, -1).numpy() for parts in zip(*((p.difference, p.deviation) for p in pieces), strict=True)
    )
    body = touchable(clean)
    return np.abs(clean - degraded - difference)[body] / np.maximum(deviation[body], 1e-3)


def covered(scores: np.ndarray) -> dict[str, float]:
    """Share of scores up to 1, 2 and 3."""
    return {str(k): round(float(np.mean(scores <= k)), 4) for k in NORMAL_COVERAGE}


def scale_of(scores: list[np.ndarray]) -> float:
    """The factor with the smallest largest error of coverage at 1, 2 and 3 deviations, series weighing the same."""
    candidates = np.geomspace(0.2, 10, 400)
    errors = [
        max(
            abs(np.mean([np.mean(one <= k * factor) for one in scores]) - share) for k, share in NORMAL_COVERAGE.items()
        )
        for factor in candidates
    ]
    return float(candidates[int(np.argmin(errors))])


if __name__ == "__main__":
    main()
