"""A job in a process of its own, beside the one that needs its results: it never outlives that one.

The process is started afresh, not forked: the parent may hold threads and a GPU. What is to be done goes to it
through a pipe, which it watches: when the pipe closes, because the parent closed it or died, it ends too.
"""

import contextlib
import json
import logging
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from filelock import FileLock, Timeout

from bundle.errors import BundleError, ExitCode, find_bundle_error
from bundle.files import write_json

logger = logging.getLogger(__name__)

Tell: TypeAlias = Callable[[str], None]
_CHILD = "from bundle.data.background import work; work()"
_SECONDS_TO_END = 10.0


class BackgroundJob:
    """One process at a time, of all that use a folder, does a job; all learn from a file that it failed.

    Args:
        job: what to do, picklable; called with a function that tells the parent a line.
        folder: where the lock and the note of a failure lie.
        name: of both.
        told: called in a thread of the parent with each line.
    """

    def __init__(self, job: Callable[[Tell], None], *, folder: Path, name: str, told: Tell | None = None) -> None:
        self.job = job
        self.told = told
        self._failure = folder / f"{name}.failed"
        self._lock_file = folder / f"{name}.lock"
        self._lock: FileLock | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._owner = os.getpid()  # a fork, such as a loader's worker, has no part in the process

    def __getstate__(self) -> dict[str, Any]:
        """What another process gets: it can tell whether the job failed, but does not begin it."""
        nothing = {"_lock": None, "_process": None, "_reader": None, "told": None, "_owner": -1}
        return {**self.__dict__, **nothing}

    @property
    def running(self) -> bool:
        """Whether this process has it running."""
        return self._owner == os.getpid() and self._reader is not None and self._reader.is_alive()

    def start(self) -> bool:
        """Begin, unless it is being done, here or by another process; whether it was begun now.

        Raises:
            BundleError: when the job cannot be handed over.
        """
        if self._owner != os.getpid() or self.running:
            return False
        self._failure.parent.mkdir(parents=True, exist_ok=True)
        self._lock = lock = FileLock(self._lock_file, thread_local=False)  # another thread releases it
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        try:
            self._failure.unlink(missing_ok=True)
            content = pickle.dumps((sys.path, str(self._failure))) + _pickled(self.job)
            paths = os.pathsep.join(path for path in sys.path if path)
            self._process = subprocess.Popen(
                [sys.executable, "-c", _CHILD],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": paths},
                start_new_session=True,  # an interrupt from the terminal is for the parent, which ends it
            )
            assert self._process.stdin is not None
            self._process.stdin.write(content)
            self._process.stdin.flush()
        except BaseException:
            lock.release()
            raise
        self._reader = threading.Thread(target=self._follow, args=(self._process, lock), daemon=True)
        self._reader.start()
        return True

    def check(self) -> None:
        """Raise what the job failed with, in whatever process it ran.

        Raises:
            BundleError: the job's own.
        """
        if self._failure.is_file():
            raise _read_failure(self._failure)

    def close(self) -> None:
        """End the process, if it is this one's."""
        if self._process is None or self._owner != os.getpid():
            return
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
        if self._reader is not None:
            self._reader.join(_SECONDS_TO_END)
        self._process = None

    def _follow(self, process: "subprocess.Popen[bytes]", lock: FileLock) -> None:
        assert process.stdout is not None and process.stdin is not None
        with process.stdout as lines:
            for line in lines:
                if self.told is not None:
                    with contextlib.suppress(OSError):  # of what is told, nothing that the job itself needs
                        self.told(json.loads(line))
        code = process.wait()
        if code and not process.stdin.closed and not self._failure.exists():  # killed: it could not say so itself
            _write_failure(self._failure, BundleError(f"the background process ended ({code})", exit_code=ExitCode.IO))
        lock.release()


def work() -> None:
    """What the process does: read the job, do it, and leave a note if it fails."""
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no line of ours
    stream = sys.stdin.buffer
    sys.path[:], failure = pickle.load(stream)

    def tell(line: str) -> None:
        with contextlib.suppress(OSError):
            lines.write(json.dumps(line) + "\n")
            lines.flush()

    try:
        job = pickle.load(stream)
        threading.Thread(target=_end_with_parent, daemon=True).start()
        with contextlib.suppress(OSError, AttributeError):
            os.nice(10)  # training comes first
        job(tell)
    except Exception as error:
        known = find_bundle_error(error)
        if known is None:
            text = f"the background process failed: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
            known = BundleError(text, exit_code=ExitCode.DEFECT)
        _write_failure(Path(failure), known)
        sys.exit(int(known.exit_code))


def _end_with_parent() -> None:
    while os.read(0, 1):  # nothing more is written; at its end, all who could have written are gone
        pass
    os._exit(0)


def _pickled(job: Any) -> bytes:
    try:
        return pickle.dumps(job)
    except Exception as error:
        raise BundleError(
            "the preprocessing cannot be handed to a process of its own: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:120]}",
            hint="use functions of a module, or --streaming false",
        ) from error


def _write_failure(path: Path, error: BundleError) -> None:
    write_json(path, {"message": error.message, "hint": error.hint, "exit_code": int(error.exit_code)})


def _read_failure(path: Path) -> BundleError:
    content = json.loads(path.read_text())
    return BundleError(content["message"], hint=content["hint"], exit_code=ExitCode(content["exit_code"]))
