"""Draw how often the full-dose scan lies within k calibrated deviations, for k from 0 to 3, series by series.

    python scripts/calibration_curve.py --dataset_dir CT --validation_folders rider_pilot_0117 crlm_1004 --output FOLDER

Slabs, noise, steps and draws are those of scripts/describe_weights.py, whose fit at 1 and 2 deviations the card of the
weights holds; what lies between and beyond was not fitted. Writes calibration.csv and calibration.png.
"""

import argparse
import csv
from pathlib import Path

import describe_weights as card_script
import matplotlib
import numpy as np
import torch
from scipy.special import erf

from bundle.configuration import bundle_root
from bundle.data.sources import find_cases
from bundle.dicom.index import read_volume
from bundle.files import whole_file
from bundle.networks.presets import build_restorer
from bundle.networks.weights import load_weights
from bundle.restoration.evaluator import use_card
from bundle.restoration.registry import Calibration, read_card

DEVIATIONS = np.linspace(0, 3, 31)


def coverage(
    error: np.ndarray, deviation: np.ndarray, noise: np.ndarray, calibration: Calibration, *, samples: int
) -> np.ndarray:
    """Share of voxels whose error is within k calibrated deviations, for each of DEVIATIONS."""
    factor, missed_hu = calibration.factors(noise, samples=samples)
    standardised = error / np.hypot(factor * deviation, missed_hu)
    return np.array([np.mean(standardised <= k) for k in DEVIATIONS])


def curves(options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Coverage of each validation series, by its folder's name."""
    network = build_restorer("small").eval()
    load_weights(network, options.weights_file)
    card = read_card(options.weights_file)
    use_card(network, card)
    found = {}
    for case in find_cases(options.dataset_dir, gaps=options.gaps).cases:
        name = Path(case.label).name
        if name in options.validation_folders:
            part = card_script.slab(read_volume(case.files, gaps=options.gaps), options)
            measured = card_script.errors(network, part, options)
            found[name] = coverage(*measured, card.calibration, samples=options.num_samples)
    return {name: found[name] for name in options.validation_folders if name in found}


def write(found: dict[str, np.ndarray], folder: Path) -> None:
    """calibration.csv and calibration.png."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    normal = erf(DEVIATIONS / np.sqrt(2))
    with whole_file(folder / "calibration.csv") as temporary, temporary.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["deviations", "normal", *found])
        writer.writerows(
            [f"{value:.4g}" for value in row] for row in zip(DEVIATIONS, normal, *found.values(), strict=True)
        )
    figure, axis = pyplot.subplots(figsize=(6, 4.5), layout="constrained")
    axis.plot(DEVIATIONS, 100 * normal, color="black", linestyle="--", label="normal")
    for name, values in found.items():
        axis.plot(DEVIATIONS, 100 * values, label=name)
    axis.set(xlabel="calibrated deviations", ylabel="full-dose scan within, %", xlim=(0, 3), ylim=(0, 101))
    axis.grid(alpha=0.3)
    axis.legend()
    with whole_file(folder / "calibration.png") as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def main() -> None:
    """Measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", required=True)
    parser.add_argument("--validation_folders", nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--weights_file", default=str(Path(bundle_root()) / "models" / "model.pt"))
    parser.add_argument("--gaps", default="resample")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--num_samples", type=int, default=8)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--slices", type=int, default=3)
    parser.add_argument("--task", default="denoise")
    parser.add_argument("--slice_thickness_mm", type=float, nargs="+", default=[5.0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    write(curves(options), options.output)


if __name__ == "__main__":
    main()
