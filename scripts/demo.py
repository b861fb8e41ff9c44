"""The whole way in about ten minutes: real CT in, a trained network, a derived DICOM series out, a table.

Run by `make demo`. A few minutes of training on twenty slices are a demonstration, not a result.
"""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

from bundle.errors import BundleError, report

sys.path.insert(0, str(Path(__file__).resolve().parent))

ROOT = Path(__file__).resolve().parent.parent
# Small enough for two cores: about 6 minutes of training. Stage 0, phase 1, phase 2.
TRAINING = {
    "patch_size": 64,
    "num_slices": 4,
    "steps_per_epoch": 100,
    "autoencoder_epochs": 1,
    "phase1_epochs": 6,
    "num_epochs": 10,
    "learning_rate": 3.0e-4,
    "noise_realisations": 1,
    "validation_slices": 4,
    "val_interval": 5,
    "clean_fraction": 0.0,
    "dose_range": "[0.2,0.35]",
    "ema_decay": 0.99,
}


def run(title: str, *command: str) -> None:
    """Run a step, its output shown, and stop the demo when it fails."""
    shown = " ".join(part.replace(f"{ROOT}/", "") for part in command)
    print(f"\n== {title}\n$ {shown}", flush=True)
    started = time.monotonic()
    finished = subprocess.run(command, cwd=ROOT, check=False)
    if finished.returncode != 0:
        raise BundleError(f"demo step '{title}' ended with exit code {finished.returncode}", hint="see the lines above")
    print(f"== done in {time.monotonic() - started:.0f} s", flush=True)


def demo(folder: Path) -> None:
    """Fetch, train, degrade, restore, evaluate; everything goes below `folder`."""
    print("CT enhancement: demonstration on one real series (about 10 minutes on 2 cores)", flush=True)
    from fetch_sample_data import fetch

    sample = fetch(ROOT / ".cache" / "sample_data" / "totalseg_mct")
    for name in ("training", "degraded", "restored", "evaluation"):
        shutil.rmtree(folder / name, ignore_errors=True)
    bundle_run = (sys.executable, "-m", "monai.bundle", "run")
    options = [part for key, value in TRAINING.items() for part in (f"--{key}", str(value))]
    run(
        "train: autoencoder, denoiser, everything",
        *(*bundle_run, "training", "--config_file", "configs/train.yaml"),
        *("--dataset_dir", str(sample), "--output_dir", str(folder / "training"), *options),
    )
    run("make a quarter-dose copy", sys.executable, "scripts/degrade_series.py", str(sample), str(folder / "degraded"))
    weights = ("--weights_file", str(folder / "training" / "model.pt"))
    run(
        "restore it: DICOM in, derived DICOM out",
        *(*bundle_run, "inference", "--config_file", "configs/inference.yaml", *weights),
        *("--dataset_dir", str(folder / "degraded"), "--output_dir", str(folder / "restored")),
    )
    run(
        "evaluate",
        *(*bundle_run, "evaluation", "--config_file", "configs/evaluate.yaml", *weights),
        *("--dataset_dir", str(sample), "--output_dir", str(folder / "evaluation")),
    )
    picture = next((folder / "evaluation").glob("comparison_*.png"))
    series = next((folder / "restored").glob("*/dicom"))
    print("\nThese numbers are a demonstration: a few minutes of training, judged on the series it was trained on.")
    print(f"before, after, difference: {picture.relative_to(ROOT)}")
    print(f"derived DICOM series:      {series.relative_to(ROOT)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", type=Path, default=ROOT / "demo")
    try:
        demo(parser.parse_args().output_dir.resolve())
    except (Exception, KeyboardInterrupt) as error:
        return report(error)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
