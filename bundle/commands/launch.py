"""`python -m bundle launch`: torchrun with our exit codes, and SIGTERM passed on.

torchrun always ends with 1, whatever its workers returned. Each worker therefore leaves its own code in a folder
that this process names, and the code of the whole is made of those. Standard library only.
"""

import itertools
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from bundle.errors import BundleError, ExitCode

_FOLDER_KEY = "CT_ENHANCE_EXIT_CODES"
# What torchrun waits for workers after SIGTERM; its 30 s would cut a validation or a large checkpoint off.
_SHUTDOWN_KEY, _SHUTDOWN_SECONDS = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "240"
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
        environment = {_SHUTDOWN_KEY: _SHUTDOWN_SECONDS, **os.environ, _FOLDER_KEY: folder}
        status, stopped = _wait([*torchrun, *options, "-m", "bundle", *rest], environment)
        return _exit_code(status, _last_attempt(Path(folder)), stopped=stopped)


def note_exit_code(code: int) -> None:
    """Leave a worker's exit code for the launcher; nothing where there is none."""
    folder = os.environ.get(_FOLDER_KEY)
    if folder:
        attempt, rank = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), os.environ.get("RANK", "0")
        (Path(folder) / f"{attempt}.{rank}").write_text(str(int(code)))


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


def _last_attempt(folder: Path) -> dict[int, int]:
    """Exit codes by rank of the last time that torchrun started the workers."""
    found = [(tuple(map(int, path.name.split("."))), int(path.read_text())) for path in folder.iterdir()]
    last = max((attempt for (attempt, _), _ in found), default=0)
    return {rank: code for (attempt, rank), code in found if attempt == last}


def _exit_code(status: int, codes: Mapping[int, int], *, stopped: bool) -> int:
    if status == 0:
        return max(codes.values(), default=0)  # 3, where series were refused
    for telling in _TELLING:
        if telling in codes.values():
            return telling
    if ExitCode.INTERRUPTED in codes.values() and (stopped or set(codes.values()) == {ExitCode.INTERRUPTED}):
        return ExitCode.INTERRUPTED
    if stopped:
        print("error: stopped before a checkpoint was written (run the same command again)", file=sys.stderr)
        return ExitCode.INTERRUPTED
    print("error: a process of this run was lost (out of memory?); run the same command again", file=sys.stderr)
    return ExitCode.DEFECT


def _is_elastic(options: Sequence[str]) -> bool:
    joined = " ".join(options).replace("=", " ").split()
    return any(a == "--nnodes" and ":" in b for a, b in itertools.pairwise(joined))
