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
        number, count = parse_shard(shard)
        self.summary_file = self.folder / ("summary.json" if shard is None else f"summary_{number}_of_{count}.json")
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
        """Whether this series was restored before with the same content, settings and weights."""
        summary = self.folder / case.key / "summary.json"
        try:
            found = json.loads(summary.read_text())
        except (OSError, ValueError):
            return False
        return found.get("fingerprint") == self.fingerprint(case)

    def skip(self, case: Case) -> None:
        """Count a finished series with what an earlier run wrote about it."""
        try:
            earlier = json.loads(self.summary_file.read_text())["series"].get(case.key, {})
        except (OSError, ValueError, KeyError):
            earlier = {}
        self.done[case.key] = earlier or {"status": "done", "source": list(case.files)}

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

    def write_summary(self, refused: Sequence[Refusal] = ()) -> ExitCode:
        """Write the run's summary (mode 0600: it maps keys to source paths and UIDs) and set the exit code."""
        bad = [refusal for refusal in refused if not refusal.foreign]
        content = {
            "schema": SCHEMA,
            "software_version": bundle.__version__,
            "finished": self.now.isoformat(timespec="seconds"),
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
