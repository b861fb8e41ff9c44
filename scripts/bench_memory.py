"""Peak memory and time of a restoration against the length of the study.

    python scripts/bench_memory.py --series SERIES [--slices 50 300 1000] [--num_threads 1] [--tiles] [--cheap]

Long studies are made by repeating a real series with new positions. Each length is restored by a fresh process. Of
its memory two peaks are printed: what is its own (anonymous; read every 20 ms, Linux only), and all that was resident,
pages of files and of the working files on disk with it. `small` has the shipped weights, `tiny` its shape, fresh
weights and a fraction of its cost. `--tiles` cuts into tiles where slices would flow. `--cheap` puts a multiplication
in the network's place and leaves everything else as it is: how memory goes with the length, for lengths that would
take hours on a busy machine. `--nifti` gives the study as a NIfTI file, `--spacing_mm 0.9` resamples its slices for the
network, `--size 192` takes the middle rows and columns alone; `--steps 4 --num_samples 2
--report` adds draws, their Parametric Map and the HTML report.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from pydicom.uid import generate_uid

from bundle.configuration import bundle_root
from bundle.data.sources import find_cases
from bundle.dicom.index import read_volume
from bundle.networks.presets import build_restorer
from bundle.training.handlers import save_weights

# Runs the command with a network that costs nothing.
CHEAP = """
import sys
from bundle.commands.main import main
from bundle.networks.restorer import Restorer

Restorer.forward = lambda self, x, spacing_mm=None, noise_level=None: 0.99 * x
Restorer.advance = lambda self, x, state, **_: (0.99 * x,)
sys.exit(main())
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", required=True)
    parser.add_argument("--slices", type=int, nargs="+", default=[50, 300, 1000])
    parser.add_argument("--preset", default="small")
    parser.add_argument("--num_threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--num_samples", type=int, default=1)
    parser.add_argument("--mixed_precision", default="auto", help="auto, bf16, fp16 or off")
    parser.add_argument("--cheap", action="store_true")
    parser.add_argument("--tiles", action="store_true", help="overlapping tiles in place of slices that flow")
    parser.add_argument("--nifti", action="store_true", help="the study as .nii.gz in place of DICOM")
    parser.add_argument("--report", action="store_true", help="an HTML report, too")
    parser.add_argument("--spacing_mm", type=float, default=-1.0, help="of rows and columns for the network")
    parser.add_argument("--size", type=int, default=0, help="rows and columns, in the middle; 0: all")
    options = parser.parse_args(arguments)
    print("slices    own MB  resident MB   seconds")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = Path(bundle_root()) / "models" / "model.pt"
        if options.preset != "small":
            weights = folder / "model.pt"
            save_weights(build_restorer(options.preset), weights)
        for count in options.slices:
            study = folder / f"study_{count}"
            repeat(Path(options.series), study, count, size=options.size)
            if options.nifti:
                study = as_nifti(study)
            own, resident, seconds = restore(study, folder / f"out_{count}", weights, options)
            print(f"{count:6} {own:9.0f} {resident:12.0f} {seconds:9.1f}", flush=True)


def repeat(series: Path, target: Path, count: int, *, size: int = 0) -> None:
    """Write `count` slices by going through a series again and again, each pass on top of the one before.

    Of each its middle `size` rows and columns, where that is above 0.
    """
    paths = find_cases(series).cases[0].files
    first, second = (pydicom.dcmread(path, stop_before_pixels=True).ImagePositionPatient for path in paths[:2])
    step = [float(b) - float(a) for a, b in zip(first, second, strict=True)]
    uid = generate_uid()
    target.mkdir()
    for k in range(count):
        image = pydicom.dcmread(paths[k % len(paths)])
        image.ImagePositionPatient = [f"{float(a) + k * d:.6f}" for a, d in zip(first, step, strict=True)]
        image.SeriesInstanceUID, image.SOPInstanceUID, image.InstanceNumber = uid, generate_uid(), str(k + 1)
        image.FrameOfReferenceUID = uid
        image.pop("SliceLocation", None)
        if size:
            if image.file_meta.TransferSyntaxUID.is_compressed:
                image.decompress()
            middle = tuple(slice((n - size) // 2, (n + size) // 2) for n in (image.Rows, image.Columns))
            image.PixelData = np.ascontiguousarray(image.pixel_array[middle]).tobytes()
            image.Rows = image.Columns = size
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.save_as(target / f"{k:04d}.dcm")


def as_nifti(study: Path) -> Path:
    """Write a study as one NIfTI file into a folder beside it, and remove it."""
    volume = read_volume([str(path) for path in study.iterdir()])
    target = study.parent / f"{study.name}_nifti"
    target.mkdir()
    values = volume.hu(out=np.empty(volume.shape, np.int16))
    nibabel.save(nibabel.Nifti1Image(values, volume.affine_ras), target / "study.nii.gz")  # type: ignore[no-untyped-call]
    shutil.rmtree(study)
    return target


def restore(study: Path, out: Path, weights: Path, options: argparse.Namespace) -> tuple[float, float, float]:
    """Peaks of own and of resident memory in MB, and wall time in seconds, of one restoration."""
    start = ["-c", CHEAP] if options.cheap else ["-m", "bundle"]
    command = [sys.executable, *start, "enhance", str(study), str(out), "--weights_file", str(weights)]
    command += ["--preset", options.preset, "--threads", str(options.num_threads)]
    command += ["--steps", str(options.steps), "--num_samples", str(options.num_samples)]
    command += ["--mixed_precision", options.mixed_precision]
    command += ["--slices_at_once", "0"] if options.tiles else []
    command += ["--report", "true"] if options.report else []
    command += ["--spacing_mm", f"[{options.spacing_mm},{options.spacing_mm},-1]"] if options.spacing_mm > 0 else []
    started = time.monotonic()
    process = os.posix_spawn(sys.executable, command, dict(os.environ))
    own, resident, ended = 0.0, 0.0, 0
    while not ended:
        ended, status, usage = os.wait4(process, os.WNOHANG)
        now = memory_mb(process)
        own, resident = max(own, now["RssAnon"]), max(resident, now["VmHWM"])
        time.sleep(0.02)
    if status:
        sys.exit(f"the restoration of {study.name} ended with {os.waitstatus_to_exitcode(status)}")
    return own, resident or usage.ru_maxrss / 1024, time.monotonic() - started


def memory_mb(process: int) -> dict[str, float]:
    """Anonymous memory of a process, and the peak of all that was resident, in MB; 0 where the system does not say.

    `ru_maxrss` would count what this process held when it started the other one.
    """
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        lines = []
    found = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.endswith("kB")}
    return {name: found.get(name, 0.0) for name in ("RssAnon", "VmHWM")}


if __name__ == "__main__":
    main()
