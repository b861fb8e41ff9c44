"""What a restoration leaves on disk: per series a folder, for the run a summary."""

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import bundle
from bundle.configuration import set_exit_code
from bundle.data.sources import Case
from bundle.dicom.index import Refusal
from bundle.errors import BundleError, ExitCode
from bundle.files import digest, require_writable, write_json
from bundle.restoration.selection import parse_shard

SCHEMA = 1
SUMMARY = "summary.json"
_PRIVATE = "private.json"  # of a series: what names it, and which files belong to it


def summary_file(folder: Path, shard: str | None = None) -> Path:
    """Where a run, or one of its shares ('i/n'), writes its summary."""
    number, count = parse_shard(shard)
    return folder / (SUMMARY if shard is None else f"summary_{number}_of_{count}.json")


class RunOutput:
    """The output folder of a run: knows what is finished, collects results, writes the run's summary.

    Args:
        folder: the output folder.
        settings: everything that decides the restored pixels.
        weights_digest: SHA-256 of the weights.
        now: the run's one clock reading.
        tolerate_bad_series: end with exit code 0 although series were refused or failed.
        shard: 'i/n' for one of n workers on one folder: each writes a summary of its own.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        settings: Mapping[str, Any],
        weights_digest: str,
        now: datetime.datetime,
        tolerate_bad_series: bool = False,
        shard: str | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.summary_file = summary_file(self.folder, shard)
        self.settings = dict(settings)
        self.settings_digest = digest(json.dumps(self.settings, sort_keys=True, default=str))
        self.weights_digest = weights_digest
        self.now = now
        self.tolerate_bad_series = tolerate_bad_series
        self.done: dict[str, dict[str, Any]] = {}
        self.failed: dict[str, str] = {}

    def fingerprint(self, case: Case) -> str:
        """Digest of a series' content, the settings and the weights."""
        return digest(case.content_digest(), self.settings_digest, self.weights_digest)

    def finished(self, case: Case) -> bool:
        """Whether this series was restored before, all its files are there, and content, settings, weights the same."""
        folder = self.folder / case.key
        files = _read(folder / _PRIVATE).get("files")
        if files is None or _read(folder / SUMMARY).get("fingerprint") != self.fingerprint(case):
            return False
        return all((folder / name).is_file() for name in files)

    def write_private(self, folder: Path, mapping: Mapping[str, str]) -> None:
        """Write (mode 0600) which files a series' whole folder holds, and the map from source UIDs to theirs."""
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        write_json(folder / _PRIVATE, {"uid_mapping": dict(mapping), "files": files}, private=True)

    def skip(self, case: Case) -> None:
        """Count a finished series with what an earlier run wrote about it."""
        folder = self.folder / case.key
        self.add(case, _read(folder / SUMMARY), _read(folder / _PRIVATE).get("uid_mapping", {}))

    def fail(self, case: Case, error: BundleError) -> None:
        """Count a series that could not be read or restored."""
        self.failed[case.key] = str(error)

    def add(self, case: Case, described: Mapping[str, Any], mapping: Mapping[str, str]) -> None:
        """Count a restored series."""
        self.done[case.key] = {
            "status": "done",
            "source": list(case.files),
            "uid_mapping": dict(mapping),
            "result": dict(described),
        }

    def write_summary(self, refused: Sequence[Refusal] = (), *, complete: bool = True) -> ExitCode:
        """Write the run's summary (mode 0600: it maps keys to source paths and UIDs) and set the exit code.

        Args:
            refused: what the index would not use.
            complete: False when the run ended before its last series.
        """
        bad = [refusal for refusal in refused if not refusal.foreign]
        content = {
            "schema": SCHEMA,
            "software_version": bundle.__version__,
            "started": self.now.isoformat(timespec="seconds"),
            "complete": complete,
            "settings": self.settings,
            "weights_sha256": self.weights_digest,
            "series": self.done,
            "failed": self.failed,
            "refused": [{"key": r.key, "reason": r.reason, "where": r.where} for r in bad],
            "ignored": [{"reason": r.reason, "where": r.where} for r in refused if r.foreign],
        }
        write_json(self.summary_file, content, private=True)
        partial = bool(bad or self.failed) and not self.tolerate_bad_series
        code = ExitCode.PARTIAL if partial else ExitCode.DONE
        set_exit_code(code)
        return code

    def require_folder(self) -> None:
        """Refuse an output folder that cannot be written to, before any work is done."""
        require_writable(self.folder, option="output_dir")


def _read(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none that can be read."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
