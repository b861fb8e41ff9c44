"""Checkpoints: whole or absent, verified by checksum, plain tensors only.

A checkpoint counts as complete when its `.sha256` lies beside it; the checksum is written last.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bundle.errors import BundleError
from bundle.files import file_digest, whole_file

_NUMBERED = re.compile(r"checkpoint_(epoch|step)_(\d+)\.pt")


def save_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Write `content` under `path` and its checksum beside it, each whole or not at all."""
    marker = _marker(path)
    marker.unlink(missing_ok=True)  # an old file's checksum must not vouch for a new file
    with whole_file(path) as temporary:
        torch.save(dict(content), temporary)
    with whole_file(marker) as temporary:
        temporary.write_text(f"{file_digest(path)}  {path.name}\n")


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        BundleError: when it is missing, damaged, or holds more than tensors and plain types.
    """
    if not path.is_file():
        raise BundleError(f"checkpoint '{path.name}' does not exist", hint="check --resume, or leave it out")
    if _marker(path).is_file() and _marker(path).read_text().split()[:1] != [file_digest(path)]:
        raise BundleError(f"checkpoint '{path.name}' is damaged: its checksum differs", hint="resume from another")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise BundleError(f"checkpoint '{path.name}' cannot be read", hint="resume from another one") from error


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the complete checkpoint that was written last; damaged ones are set aside by name."""
    for path in reversed(_by_age(folder)):
        if not _marker(path).is_file():
            continue  # its save was cut off
        try:
            load_checkpoint(path)
        except BundleError:
            path.rename(path.with_suffix(".damaged"))
            _marker(path).unlink(missing_ok=True)
            continue
        return path
    return None


def prune_checkpoints(folder: Path, *, keep: int) -> None:
    """Keep the `keep` checkpoints of each kind (epoch, step) that were written last; best and final stay.

    What saves that were cut off left behind goes too.
    """
    for kind in ("epoch", "step"):
        written = [path for path in _by_age(folder) if path.name.startswith(f"checkpoint_{kind}_")]
        for path in written[: -keep or None]:
            path.unlink(missing_ok=True)
            _marker(path).unlink(missing_ok=True)
    for path in folder.glob(".checkpoint_*.part"):
        path.unlink(missing_ok=True)


def _by_age(folder: Path) -> list[Path]:
    """Checkpoints by step and epoch, oldest first: by time, as a run that started anew counts from 0 again."""

    def age(path: Path) -> tuple[int, int]:
        return path.stat().st_mtime_ns, int(path.stem.rsplit("_", 1)[1])

    return sorted((path for path in folder.glob("checkpoint_*.pt") if _NUMBERED.fullmatch(path.name)), key=age)


def _marker(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")
