"""`python -m bundle launch`: torchrun with our exit codes, and SIGTERM passed on.

torchrun always ends with 1, whatever its workers returned, and its last words are a table of its own. Each worker
therefore leaves its code and its error (`worker_notes`); the code of the whole is made of those, and the error that
goes with it is said once more, last. Standard library only.
"""

import itertools
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from bundle.commands.worker_notes import FOLDER_KEY, Note, notes_of_last_attempt, one_was_lost
from bundle.errors import BundleError, ExitCode

# What torchrun waits for workers after SIGTERM; its 30 s would cut a validation or a large checkpoint off.
_SHUTDOWN_KEY, _SHUTDOWN_SECONDS = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "240"
# torchrun shares one store between its attempts; workers of the second would find the addresses of the first's there.
_STORE_KEY = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
_TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
# Where one worker says what is wrong, the others only say that they were stopped: the first of these counts.
_TELLING = (ExitCode.USER, ExitCode.IO, ExitCode.DEFECT)


def launch(arguments: Sequence[str], *, torchrun: Sequence[str] = _TORCHRUN) -> int:
    """Run `torchrun OPTIONS -m bundle run ...`.

    Args:
        arguments: torchrun's options, then `run` and what follows it. `--nnodes MIN:MAX` also sets
            `--allow_world_size_change true`.
        torchrun: the command that starts the workers.

    Returns:
        0 when all workers ended well, else the most telling code of a worker.

    Raises:
        BundleError: when there is no `run` among the arguments.
    """
    if "run" not in arguments:
        raise BundleError("launch needs a command", hint="launch --nproc_per_node N run training --config_file ...")
    at = list(arguments).index("run")
    options, rest = list(arguments[:at]), list(arguments[at:])
    if _is_elastic(options) and not any(argument.startswith("--allow_world_size_change") for argument in rest):
        rest += ["--allow_world_size_change", "true"]
    if not any(option.startswith(("--rdzv", "--master", "--node", "--nnodes", "--standalone")) for option in options):
        options.append("--standalone")
    with tempfile.TemporaryDirectory(prefix="ct-enhance-") as folder:
        environment = {_SHUTDOWN_KEY: _SHUTDOWN_SECONDS, _STORE_KEY: "1", **os.environ, FOLDER_KEY: folder}
        status, stopped = _wait([*torchrun, *options, "-m", "bundle", *rest], environment)
        code, line = _outcome(status, notes_of_last_attempt(Path(folder)), stopped=stopped)
    if line:
        print(line, file=sys.stderr)
    return code


def _wait(command: Sequence[str], environment: Mapping[str, str]) -> tuple[int, bool]:
    """Run a command, pass SIGTERM and SIGINT on to it; its status, and whether it was asked to stop."""
    asked: list[int] = []
    process = subprocess.Popen(command, env=dict(environment), start_new_session=True)

    def pass_on(number: int, frame: object) -> None:
        asked.append(number)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return process.wait(), bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _outcome(status: int, notes: Mapping[int, Note], *, stopped: bool) -> tuple[int, str]:
    """The exit code of the whole, and the line that says why."""
    lines = {note.code: note.line for note in reversed([*notes.values()])}  # of the first worker with that code
    if status == 0:
        return max(lines, default=ExitCode.DONE), ""  # 3, where series were refused
    for telling in _TELLING:
        if telling in lines:
            return telling, lines[telling]
    # Those who lose another say 75 too, but they were not all interrupted: that has to count.
    all_interrupted = lines.keys() == {ExitCode.INTERRUPTED} and not one_was_lost(notes)
    if ExitCode.INTERRUPTED in lines and (stopped or all_interrupted):
        return ExitCode.INTERRUPTED, lines[ExitCode.INTERRUPTED]
    if stopped:
        return ExitCode.INTERRUPTED, "error: stopped before a checkpoint was written (run the same command again)"
    return ExitCode.DEFECT, "error: a process of this run was lost (out of memory?); run the same command again"


def _is_elastic(options: Sequence[str]) -> bool:
    joined = " ".join(options).replace("=", " ").split()
    return any(a == "--nnodes" and ":" in b for a, b in itertools.pairwise(joined))
