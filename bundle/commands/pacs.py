"""`python -m bundle pacs`: restores the new CT series of a PACS and sends the derived series back.

Everything can be done twice without harm, which is what makes a killed worker harmless: a fetched folder appears whole
or not at all, a restored series too, UIDs of derived images depend on nothing but input, settings and weights, and only
images that the PACS does not hold are sent. The ledger saves asking and restoring again; losing it costs time only.
"""

import contextlib
import fcntl
import json
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bundle.commands.run import run_workflow
from bundle.configuration import bundle_root, flag
from bundle.errors import BundleError, ExitCode, InterruptedRun
from bundle.files import remove_parts, require_writable, whole_folder, write_json
from bundle.overrides import CommandLine, nearest, parse_command_line

HELP = """\
Restore the new CT series of a PACS and send the derived series back. Research use only.

usage: python -m bundle pacs --url URL --work_dir DIR [--key value ...]

  --url URL             root of the DICOMweb services, such as http://orthanc:8042/dicom-web
  --work_dir DIR        what is on its way, and the ledger of what is done
  --match RULE          which series, such as "SeriesDescription=*thin*;StudyDate=20260101-"
  --settle_seconds 120  a series is taken when it has not grown for so long
  --every_seconds 0     ask again after so long; 0: one round
  --keep_files false    keep fetched and restored files after sending

User and password are taken from the variables CT_ENHANCE_PACS_USER and
CT_ENHANCE_PACS_PASSWORD, or a token from CT_ENHANCE_PACS_TOKEN. Every other key is
one of configs/inference.yaml.
"""

OPTIONS: dict[str, Any] = {
    "url": None, "work_dir": None, "match": "", "settle_seconds": 120, "every_seconds": 0, "keep_files": "false",
}  # fmt: skip
_BATCH = 8  # series that are fetched before they are restored: the volume is small
_SEEN, _RESTORED, _SENT, _REFUSED, _OURS = "seen", "restored", "sent", "refused", "derived by us"


def pacs(arguments: Sequence[str], *, clock: Callable[[], float] = time.time) -> int:
    """Do one round, or one every `--every_seconds` until SIGTERM.

    Returns:
        The exit code: 3 when series were refused in this round and `--tolerate_bad_series` is not given.

    Raises:
        BundleError: when an option is wrong, the PACS cannot be reached, or the folder is in use.
    """
    if not arguments or any(argument in ("-h", "--help") for argument in arguments):
        print(HELP, end="")
        return ExitCode.DONE
    line = parse_command_line(arguments)
    if line.positionals:
        raise BundleError(f"unexpected argument '{line.positionals[0]}'", hint="options are written --key value")
    own = {key: line.options.get(key, default) for key, default in OPTIONS.items()}
    for key in ("url", "work_dir"):
        if not isinstance(own[key], str):
            raise BundleError(f"{key} is required: name it with --{key}")
    worker = Worker(own, {key: value for key, value in line.options.items() if key not in OPTIONS}, clock=clock)
    with _alone(worker.folder):
        while True:
            code = worker.round()
            if not float(own["every_seconds"]):
                return code
            time.sleep(float(own["every_seconds"]))


class Worker:
    """One worker and its folder: `in/` fetched, `out/` restored, `ledger.json` what became of each series.

    Args:
        own: the options of this command.
        options: those of the inference workflow.
        clock: seconds since 1970.
    """

    def __init__(self, own: dict[str, Any], options: dict[str, Any], *, clock: Callable[[], float]) -> None:
        from bundle.dicom.dicomweb import Pacs, matching_rule

        wrong = next((key for key in options if nearest(key, OPTIONS) and key not in _inference_keys()), None)
        if wrong is not None:
            raise BundleError(f"unknown option --{wrong}", hint=f"did you mean --{nearest(wrong, OPTIONS)}?")
        self.folder = require_writable(Path(own["work_dir"]), option="work_dir")
        self.pacs, self.rule = Pacs(own["url"]), matching_rule(str(own["match"] or ""))
        self.settle_seconds, self.keep_files = float(own["settle_seconds"]), flag(own["keep_files"])
        self.tolerant = flag(options.pop("tolerate_bad_series", False))
        self.options, self.clock = options, clock
        self.ledger: dict[str, dict[str, Any]] = {}
        with contextlib.suppress(FileNotFoundError, ValueError):  # lost or torn: everything is asked again
            self.ledger = json.loads((self.folder / "ledger.json").read_text())

    def round(self) -> int:
        """Send what is left over, then fetch, restore and send what is new.

        Raises:
            InterruptedRun: after the series in hand, when SIGTERM came.
        """
        for name in ("in", "out"):
            remove_parts(self.folder / name)  # half a series may be a lawful, shorter one
        self._send()  # what a killed worker had restored
        sent, refused = 0, 0
        while batch := self._fetch():
            self._restore(batch)
            sent += self._send()
            refused += sum(self.ledger[key]["state"] == _REFUSED for key in batch)
        waiting = sum(entry["state"] == _SEEN for entry in self.ledger.values())
        print(f"pacs: {sent} series sent, {refused} refused, {waiting} still growing", file=sys.stderr, flush=True)
        return ExitCode.PARTIAL if refused and not self.tolerant else ExitCode.DONE

    def _fetch(self) -> list[str]:
        """Fetch the next few new series and return their keys."""
        batch: list[str] = []
        for series in self.pacs.series(self.rule):
            if len(batch) == _BATCH:
                break
            entry = self.ledger.get(series.key)
            if entry is not None and entry["state"] == _OURS:
                continue
            if entry is None and self.pacs.is_derived_by_us(series):
                self._note(series.key, state=_OURS)
                continue
            if entry is None or entry["instances"] != series.instances:
                self._note(series.key, state=_SEEN, instances=series.instances, since=self.clock())
                entry = self.ledger[series.key]
            settled = self.clock() - entry.get("since", 0) >= self.settle_seconds
            if entry["state"] != _SEEN or not settled:
                continue
            with whole_folder(self.folder / "in" / series.key) as target:
                fetched = self.pacs.fetch(series, target)
            if fetched != series.instances:  # it grew meanwhile
                self._note(series.key, state=_SEEN, instances=fetched, since=self.clock())
                shutil.rmtree(self.folder / "in" / series.key)
                continue
            batch.append(series.key)
        return batch

    def _restore(self, batch: list[str]) -> None:
        """Restore the fetched series, and note those that cannot be."""
        from bundle.dicom.index import find_series

        parts: dict[str, list[str]] = {}
        for key in batch:
            folder = self.folder / "in" / key
            index = find_series(folder, gaps=str(self.options.get("gaps", "refuse")))
            parts[key] = [series.key for series in index.series]
            if not parts[key]:
                reasons = "; ".join(sorted({refusal.reason for refusal in index.refused})) or "no CT volume"
                self._refuse(key, reasons)
        if any(parts.values()):
            self._run()
        for key, names in parts.items():
            whole = [name for name in names if (self.folder / "out" / name / "dicom").is_dir()]
            if whole:
                self._note(key, state=_RESTORED, parts=whole)
                if len(whole) < len(names):
                    self._say(key, f"{len(names) - len(whole)} of its {len(names)} volumes could not be restored")
            elif names:
                self._refuse(key, "it could not be restored; see out/summary.json")

    def _run(self) -> None:
        options = {
            "config_file": str(Path(bundle_root()) / "configs" / "inference.yaml"),
            **self.options,
            "dataset_dir": str(self.folder / "in"),
            "output_dir": str(self.folder / "out"),
            "tolerate_bad_series": True,
        }
        with _signals_after():
            run_workflow(CommandLine(("inference",), options))

    def _send(self) -> int:
        """Send every restored series, whole, and return how many."""
        sent = 0
        for key, entry in list(self.ledger.items()):
            if entry["state"] != _RESTORED:
                continue
            parts = [sorted((self.folder / "out" / name / "dicom").glob("*.dcm")) for name in entry["parts"]]
            if not all(parts):
                self._say(key, "restored files are gone; it is fetched again")
                self._note(key, state=_SEEN)
                continue
            for files in parts:
                self._say(key, f"{self.pacs.store(files)} images sent")
            self._note(key, state=_SENT)
            self._tidy(key, entry["parts"])
            sent += 1
        return sent

    def _refuse(self, key: str, reason: str) -> None:
        self._say(key, f"refused: {reason}")
        self._note(key, state=_REFUSED, reason=reason)
        self._tidy(key, ())

    def _tidy(self, key: str, parts: Sequence[str]) -> None:
        if not self.keep_files:
            for folder in (self.folder / "in" / key, *(self.folder / "out" / name for name in parts)):
                shutil.rmtree(folder, ignore_errors=True)

    def _say(self, key: str, what: str) -> None:
        print(f"pacs: series {key}: {what}", file=sys.stderr, flush=True)

    def _note(self, key: str, **facts: Any) -> None:
        """Change a series' entry, on disk at once."""
        self.ledger[key] = self.ledger.get(key, {}) | facts
        write_json(self.folder / "ledger.json", self.ledger, private=True)


def _inference_keys() -> set[str]:
    from bundle.overrides import load_config

    return set(load_config([Path(bundle_root()) / "configs" / "inference.yaml"]))


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which ends with the process.

    Raises:
        BundleError: when another worker has it.
    """
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BundleError("another worker is at work in work_dir", hint="one worker for each folder") from None
        yield


@contextlib.contextmanager
def _signals_after() -> Iterator[None]:
    """Give SIGTERM its meaning back after a workflow that took it over, also for one that came too late for it.

    A workflow stops between two series; asked during its last one, it ends as if nobody had asked.

    Raises:
        InterruptedRun: when a signal to stop came and the workflow ended well.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    reading, writing = socket.socketpair()
    with reading, writing:
        for end in (reading, writing):
            end.setblocking(False)
        former = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)  # told whoever handles the signal
        try:
            yield
        finally:
            signal.set_wakeup_fd(former)
            signal.signal(signal.SIGTERM, before)
        with contextlib.suppress(BlockingIOError):
            if {signal.SIGTERM, signal.SIGINT} & {*reading.recv(4096)}:
                raise InterruptedRun("stopped between series; what is finished is kept")
