"""Compare our DICOM reader with others on real series: wall time, CPU time and memory, as ratios.

Every measurement is a fresh process; readers take turns within each round, so that a machine that others use too
treats them alike. Imports are not timed (they are most of MONAI's time); our workers' start is. Memory is the sum of
the proportional set sizes (PSS) of the process and its children, sampled in a run of its own, beyond what the
process has after its imports, so our workers' interpreters count. SimpleITK, itk and dcm2niix are optional: what is
missing is left out with a word.

Three rows are ours: the volume (exact stored values, HU when asked for), all its HU made at once as int16 (what
SimpleITK returns), and as float32 (what the transforms get).

Usage: python scripts/bench_dicom.py [--data_dir DIR] [--rounds N]
"""

import argparse
import contextlib
import importlib.util
import json
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
SERIES = ("lidc_0314", "covidctmd_normal002")
REPEATED = "lidc_0314, 300 slices, uncompressed"
REPEATED_SLICES = 300
SAMPLE_SECONDS = 0.02

Load = Callable[[str], Any]


def ours() -> Load:
    from bundle.dicom.index import read_volume

    return read_volume


def ours_int16() -> Load:
    from bundle.dicom.index import read_volume

    return lambda folder: read_volume(folder).hu(np.int16)


def ours_float32() -> Load:
    from bundle.dicom.index import read_volume

    return lambda folder: read_volume(folder).hu(np.float32)


def monai_pydicom() -> Load:
    from monai.data.image_reader import PydicomReader

    reader = PydicomReader()
    return lambda folder: reader.get_data(reader.read(folder))[0]


def monai_itk() -> Load:
    from monai.data.image_reader import ITKReader

    reader = ITKReader()
    return lambda folder: reader.get_data(reader.read(folder))[0]


def simpleitk() -> Load:
    import SimpleITK

    def load(folder: str) -> np.ndarray:
        reader = SimpleITK.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(folder))
        load.image = reader.Execute()  # type: ignore[attr-defined]  # owns the memory of the view
        return SimpleITK.GetArrayViewFromImage(load.image)  # type: ignore[attr-defined]

    return load


def dcm2niix() -> Load:
    import nibabel
    from dcm2niix import bin as program

    def load(folder: str) -> np.ndarray:
        with tempfile.TemporaryDirectory() as out:
            command = [program, "-z", "n", "-b", "n", "-f", "x", "-o", out, folder]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            image = nibabel.load(next(Path(out).glob("x*.nii")))
            return np.asarray(image.dataobj)  # type: ignore[attr-defined]

    return load


# Name -> (maker of the loading function, packages it needs beside ours).
READERS: dict[str, tuple[Callable[[], Load], tuple[str, ...]]] = {
    "ours": (ours, ()),
    "ours, HU int16": (ours_int16, ()),
    "ours, HU float32": (ours_float32, ()),
    "SimpleITK": (simpleitk, ("SimpleITK",)),
    "dcm2niix": (dcm2niix, ("dcm2niix",)),
    "MONAI PydicomReader": (monai_pydicom, ("monai",)),
    "MONAI ITKReader": (monai_itk, ("monai", "itk")),
}


def measure(name: str, folder: str, *, wait: bool) -> None:
    """In a process of its own: load once and print what it took; `wait` for a line on stdin before and after."""
    load = READERS[name][0]()
    if wait:
        print("ready", flush=True)
        sys.stdin.readline()
    wall, cpu = time.perf_counter(), cpu_seconds()
    loaded = load(folder)
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    facts = {"wall": wall, "cpu": cpu, "shape": sorted(loaded.shape), "mean": mean_hu(loaded)}
    print(json.dumps(facts), flush=True)
    if wait:
        sys.stdin.readline()


def mean_hu(loaded: Any) -> float:
    """Of an array, or of a volume without making all its HU at once."""
    if isinstance(loaded, np.ndarray):
        return float(np.mean(loaded, dtype=np.float64))
    return float(np.mean([loaded.slice_hu(k).mean(dtype=np.float64) for k in range(loaded.shape[2])]))


def cpu_seconds() -> float:
    """Of this process and all its children, living and ended."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    total = sum(usage.ru_utime + usage.ru_stime for usage in spent)
    for child in family(os.getpid())[1:]:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def family(process: int) -> list[int]:
    """A process and all below it."""
    found = [process]
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += family(int(child))
    return found


def pss_bytes(process: int) -> int:
    """Proportional set size of a process and all below it: shared pages are counted once."""
    total = 0
    for member in family(process):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{member}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def timed(name: str, folder: Path) -> dict[str, Any]:
    """Wall and CPU seconds of one load."""
    command = [sys.executable, __file__, "--measure", name, str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def peak_bytes(name: str, folder: Path) -> tuple[int, int]:
    """Most memory of one load, beyond what the process has after its imports; and what its children hold afterwards."""
    command = [sys.executable, __file__, "--measure", name, str(folder), "--wait"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **pipes) as child:  # type: ignore[call-overload]
        while child.stdout.readline().strip() != "ready":
            pass
        before = peak = pss_bytes(child.pid)
        child.stdin.write("\n")
        child.stdin.flush()
        while not select.select([child.stdout], [], [], SAMPLE_SECONDS)[0]:
            peak = max(peak, pss_bytes(child.pid))
        peak = max(peak, pss_bytes(child.pid))
        children = sum(map(pss_bytes, family(child.pid)[1:]))
        child.stdin.write("\n")
    return peak - before, children


def repeated_series(source: Path, target: Path) -> None:
    """Write an uncompressed series of REPEATED_SLICES slices out of a shorter compressed one."""
    import pydicom
    from pydicom import uid

    slices = sorted((pydicom.dcmread(path) for path in source.iterdir()), key=lambda d: d.ImagePositionPatient[2])
    step = float(slices[1].ImagePositionPatient[2]) - float(slices[0].ImagePositionPatient[2])
    for dataset in slices:
        dataset.decompress(decoding_plugin="pyjpegls", generate_instance_uid=False)
    series, frame_of_reference = uid.generate_uid(), uid.generate_uid()  # LIDC has a frame of reference per slice
    for k in range(REPEATED_SLICES):
        dataset = slices[k % len(slices)]
        dataset.SeriesInstanceUID, dataset.SOPInstanceUID = series, uid.generate_uid()
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.FrameOfReferenceUID, dataset.InstanceNumber = frame_of_reference, k + 1
        dataset.ImagePositionPatient = [*slices[0].ImagePositionPatient[:2], f"{k * step - 400:.6g}"]
        dataset.save_as(target / f"{k:04d}.dcm")


def compare(title: str, folder: Path, names: list[str], *, rounds: int) -> None:
    """Measure all readers on one series and print a table of ratios."""
    for path in folder.iterdir():
        path.read_bytes()  # so that none pays for the disk
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            results[name].append(timed(name, folder))
    peaks = {name: peak_bytes(name, folder) for name in names}
    shape = results[names[0]][0]["shape"]
    volume = 2 * int(np.prod(shape))
    # The least disturbed of each: what else the machine does only ever adds.
    best = {name: {key: min(result[key] for result in results[name]) for key in ("wall", "cpu")} for name in names}
    print(f"\n### {title}: {' x '.join(map(str, shape))}, int16 volume of {volume / 2**20:.0f} MiB\n")
    print("| reader | wall, relative to ours | CPU, relative to ours | peak memory, in int16 volumes | same HU |")
    print("|---|---|---|---|---|")
    for name in names:
        wall, cpu = (best[name][key] / best["ours"][key] for key in ("wall", "cpu"))
        same = abs(results[name][0]["mean"] - results["ours"][0]["mean"]) < 0.01 and results[name][0]["shape"] == shape
        print(f"| {name} | {wall:.2f} | {cpu:.2f} | {peaks[name][0] / volume:.2f} | {'yes' if same else 'NO'} |")
    workers = peaks["ours"][1] / 2**20
    took = f"{best['ours']['wall']:.2f} s wall, {best['ours']['cpu']:.2f} s CPU (least of {rounds})"
    print(f"\nOurs: {took}; of its memory {workers:.0f} MiB are the decoding processes, which stay.", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data_dir", type=Path, default=ROOT.parent / "shared" / "data" / "ct")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", nargs=2, metavar=("READER", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--wait", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure, wait=options.wait)
        return
    if not (options.data_dir / SERIES[0]).is_dir():
        print(f"skipped: no series '{SERIES[0]}' in the data folder; name one with --data_dir")
        return
    names = []
    for name, (_, packages) in READERS.items():
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        if missing:
            print(f"left out: {name}, which needs the package {missing[0]}")
        else:
            names.append(name)
    for title in SERIES:
        compare(title, options.data_dir / title, names, rounds=options.rounds)
    with tempfile.TemporaryDirectory() as folder:
        repeated_series(options.data_dir / SERIES[0], Path(folder))
        compare(REPEATED, Path(folder), names, rounds=options.rounds)


if __name__ == "__main__":
    main()
