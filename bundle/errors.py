"""Errors a user can act on, the exit codes that go with them, and their one-line report."""

import enum
import errno
import os
import re
import sys
import tempfile
import traceback
from pathlib import Path
from types import TracebackType


class ExitCode(enum.IntEnum):
    """What a command's exit status says; manifests and scripts rely on these values."""

    DONE = 0
    USER = 2  # the user must change something; the message says what
    PARTIAL = 3  # done, but some series were refused or failed (listed in summary.json)
    DEFECT = 70  # a defect of ours; the traceback is kept in a log file
    IO = 74  # input or output failed: disk full, read-only folder
    INTERRUPTED = 75  # stopped after a checkpoint or between series; start again to go on


class BundleError(Exception):
    """Something the user can change: what is wrong, where, and what to do about it.

    Args:
        message: what is wrong and where, in one line, without patient identifiers.
        hint: what to do, in one line; empty when the message already says it.
        exit_code: the status a command ends with.
    """

    def __init__(self, message: str, *, hint: str = "", exit_code: ExitCode = ExitCode.USER) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class InterruptedRun(BundleError):
    """The run was asked to stop and left everything in a state to go on from."""

    def __init__(self, message: str, *, hint: str = "run the same command again to go on") -> None:
        super().__init__(message, hint=hint, exit_code=ExitCode.INTERRUPTED)


def find_bundle_error(error: BaseException | None) -> BundleError | None:
    """Return the BundleError behind `error`, following its causes, or None.

    MONAI wraps what a transform or a configured component raises in RuntimeErrors; the cause chain still
    holds ours. OSErrors about the disk become a BundleError with exit code 74.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, BundleError):
            return error
        if isinstance(error, OSError) and error.errno in _IO_ERRNOS:
            hint = "check its owner and permissions" if isinstance(error, PermissionError) else ""
            return BundleError(f"{error.strerror}: {_short(error.filename)}", hint=hint, exit_code=ExitCode.IO)
        error = error.__cause__ or error.__context__
    return None


def report(error: BaseException) -> ExitCode:
    """Print `error` as one line on stderr and return the exit code it stands for.

    An error that is none of ours is a defect: its traceback goes to a file named in the line.
    """
    if isinstance(error, KeyboardInterrupt):
        print("error: interrupted (run the same command again to go on)", file=sys.stderr)
        return ExitCode.INTERRUPTED
    known = find_bundle_error(error) or defect(error)
    print(f"error: {_one_line(str(known))}", file=sys.stderr)
    return known.exit_code


def defect(error: BaseException) -> BundleError:
    """Keep the traceback of an error that is none of ours; returns what to say, with exit code 70.

    It goes to a file, or where CT_ENHANCE_TRACEBACK is `stderr` there: a container's files end with it.
    """
    if os.environ.get("CT_ENHANCE_TRACEBACK") == "stderr":
        print(_traceback(error), end="", file=sys.stderr)
        place = "above"
    else:
        with tempfile.NamedTemporaryFile("w", prefix="ct-enhance-", suffix=".log", delete=False) as log:
            log.write(_traceback(error))
        place = f"in {log.name}"
    cause = _innermost(error)
    text = (
        f"{cause.strerror}: {_short(cause.filename)}" if isinstance(cause, OSError) and cause.filename else str(cause)
    )
    return BundleError(
        f"{type(cause).__name__}: {_one_line(text)[:160]}",
        hint=f"a defect of ours; traceback {place}",
        exit_code=ExitCode.DEFECT,
    )


def install_excepthook() -> None:
    """Make uncaught errors of this process one line instead of MONAI's wall of wrapped tracebacks."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if find_bundle_error(error) is None:
            sys.__excepthook__(kind, error, trace)
        else:
            report(error)

    sys.excepthook = hook


def _innermost(error: BaseException) -> BaseException:
    """What was wrapped: MONAI's own words say only which component it was in."""
    seen: set[int] = set()
    while error.__cause__ is not None and id(error) not in seen:
        seen.add(id(error))
        error = error.__cause__
    return error


def _traceback(error: BaseException) -> str:
    """The traceback, with paths in its messages cut to their last part; places in code stay."""
    lines = "".join(traceback.format_exception(error)).splitlines(keepends=True)
    return "".join(line if line.startswith('  File "') else _FOLDERS.sub("", line) for line in lines)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _short(name: object) -> str:
    """The last part of a path: folders above may carry patient names."""
    return Path(str(name)).name if name else "output"


_IO_ERRNOS = frozenset(
    {errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.ESTALE}
)
# In quotes a path may hold spaces; elsewhere it begins with / or ends a word's slashes.
_FOLDERS = re.compile(r"""(?<=['"])(?:[^'"/\n]*/)+(?=[^'"/\n]*['"])|(?<![\w'"])(?:/[^/\s'"]+)+/(?=\S)""")
