"""`python -m bundle doctor`: is this machine ready, and if not, what to do."""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bundle import __version__
from bundle.configuration import bundle_root
from bundle.errors import BundleError, ExitCode

USAGE = "python -m bundle doctor [--json]"
_GB = 1e9
_LEAST_DISK_GB = 2.0  # a study in, a study out
_LEAST_MEMORY_GB = 4.0
_DECODERS = {"JPEG": "gdcm", "JPEG-LS": "_CharLS", "JPEG 2000": "openjpeg", "RLE": "rle"}
_OPTIONAL = {
    "onnxruntime": "running exports (--exported_dir)",
    "bm3d": "the BM3D baseline",
    "imageio_ffmpeg": "MP4 previews",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        topic: what, in one or two words.
        state: 'ok', 'note' (works, but) or 'wrong'.
        text: what was found; no paths above this bundle's folder.
        hint: what to do; empty when nothing.
    """

    topic: str
    state: str
    text: str
    hint: str = ""


def doctor(arguments: Sequence[str]) -> int:
    """Print what was found; the exit code is 2 when something is wrong.

    Raises:
        BundleError: when the arguments are wrong, or (after printing) when something must be changed.
    """
    as_json = list(arguments) in (["--json"], ["--json", "true"])
    if arguments and not as_json:
        raise BundleError(f"unexpected argument '{arguments[0]}'", hint=USAGE)
    findings = [finding for check in CHECKS for finding in check()]
    if as_json:
        print(json.dumps({"schema_version": 1, "findings": [asdict(one) for one in findings]}, indent=2))
    else:
        for one in findings:
            print(f"{one.state:6}{one.topic:12}{one.text}")
            if one.hint:
                print(f"{'':18}to do: {one.hint}")
    wrong = [one.topic for one in findings if one.state == "wrong"]
    if wrong:
        raise BundleError(f"not ready: {', '.join(dict.fromkeys(wrong))}", hint="what to do is said above")
    return ExitCode.DONE


def check_package() -> Iterator[Finding]:
    """Which copy of the package Python found, and whether another one lies in the way."""
    here = Path(__file__).resolve().parents[1]
    yield Finding("bundle", "ok", f"ct-enhance {__version__}, Python {platform.python_version()}, {platform.system()}")
    for folder in dict.fromkeys(Path(entry or ".").resolve() for entry in sys.path):
        other = folder / "bundle"
        if (other / "__init__.py").is_file() and other.resolve() != here:
            hint = "start elsewhere, or rename that folder: the first on Python's search path wins"
            yield Finding("bundle", "note", f"another package 'bundle' is on the search path, in '{folder.name}'", hint)


def check_requirements() -> Iterator[Finding]:
    """The packages that this one asks for, by its own metadata (or requirements.txt in a plain folder)."""
    from packaging.requirements import Requirement

    missing = []
    needed = [Requirement(line) for line in _requirement_lines()]
    needed = [one for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    for one in needed:
        try:
            version = importlib.metadata.version(one.name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(f"{one.name} (not installed)")
        else:
            if not one.specifier.contains(version, prereleases=True):
                missing.append(f"{one.name} {version} (needs {one.specifier})")
    if missing:
        yield Finding("packages", "wrong", ", ".join(missing), "make setup, or pip install -r requirements.txt")
    else:
        yield Finding("packages", "ok", f"all {len(needed)} are there")
    for name, purpose in _OPTIONAL.items():
        if importlib.util.find_spec(name) is None:
            yield Finding("packages", "note", f"{name} is not installed; it is for {purpose}")


def check_device() -> Iterator[Finding]:
    """Where networks would run and in which number format."""
    import torch

    from bundle.networks.precision import resolve_precision

    kinds = ["cuda"] if torch.cuda.is_available() else []
    for kind in [*kinds, "cpu"]:
        try:
            dtype = resolve_precision("auto", kind).dtype or torch.float32
        except BundleError as error:  # a GPU that this build of torch has no code for
            yield Finding("device", "wrong", f"{kind}: {error.message}", error.hint)
            continue
        name = torch.cuda.get_device_name() if kind == "cuda" else _threads(torch.get_num_threads())
        yield Finding("device", "ok", f"{kind}: {name}, mixed_precision auto is {str(dtype).removeprefix('torch.')}")
    if not kinds:
        built = torch.version.cuda is not None
        hint = "check the driver with nvidia-smi" if built else ""
        yield Finding(
            "device", "note", "no CUDA device" + (" found" if built else ": this PyTorch is a CPU build"), hint
        )
    memory = _memory_bytes()
    if memory is not None:
        state = "ok" if memory >= _LEAST_MEMORY_GB * _GB else "note"
        hint = "" if state == "ok" else "use a smaller tile: --tile_size '[256,256,8]'"
        yield Finding("memory", state, f"{memory / _GB:.1f} GB", hint)


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def check_decoders() -> Iterator[Finding]:
    """Whether compressed DICOM can be read."""
    missing = [name for name, module in _DECODERS.items() if importlib.util.find_spec(module) is None]
    if missing:
        yield Finding("decoders", "wrong", f"no decoder for {', '.join(missing)}", "pip install -r requirements.txt")
    else:
        yield Finding("decoders", "ok", "every supported transfer syntax")


def check_weights() -> Iterator[Finding]:
    """Whether the shipped weights are the ones that their card describes."""
    from bundle.files import file_digest

    folder = Path(bundle_root()) / "models"
    for name, expected in _known_digests(folder).items():
        path = folder / name
        if not path.is_file():
            yield Finding("weights", "wrong", f"models/{name} is missing", "get the release again")
        elif file_digest(path) != expected:
            yield Finding("weights", "wrong", f"models/{name} is not the file that its card describes", "get it again")
        else:
            yield Finding("weights", "ok", f"models/{name}, SHA-256 {expected[:16]}")


def check_disk() -> Iterator[Finding]:
    """Room in the current and in the temporary folder."""
    import tempfile

    for name, folder in (("this folder", Path.cwd()), ("the temporary folder", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(folder).free
        state = "ok" if free >= _LEAST_DISK_GB * _GB and os.access(folder, os.W_OK) else "wrong"
        hint = "" if state == "ok" else "free some room, or start elsewhere"
        yield Finding("disk", state, f"{free / _GB:.0f} GB free in {name}", hint)


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_package,
    check_requirements,
    check_device,
    check_decoders,
    check_weights,
    check_disk,
)


def _requirement_lines() -> list[str]:
    try:
        return importlib.metadata.requires("ct-enhance") or []
    except importlib.metadata.PackageNotFoundError:  # a packed bundle: a folder, not an installation
        file = Path(bundle_root()) / "requirements.txt"
        lines = file.read_text().splitlines() if file.is_file() else []
        return [line.partition("#")[0].strip() for line in lines if line.partition("#")[0].strip()]


def _known_digests(folder: Path) -> dict[str, str]:
    """File name to SHA-256: of the weights' own descriptions (models/NAME.json), else of models/README.md."""
    known = {}
    for description in sorted(folder.glob("*.json")):
        with contextlib.suppress(ValueError, AttributeError):
            if digest := json.loads(description.read_text()).get("sha256"):
                known[description.with_suffix(".pt").name] = str(digest)
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    found = re.search(r"SHA-256\s+`([0-9a-f]{64})`", text)
    return {"model.pt": found.group(1), **known} if found else known


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
