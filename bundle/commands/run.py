"""`python -m bundle run`: MONAI's run command with exit codes and one-line errors."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bundle import __version__
from bundle.configuration import check_overrides, exit_code, require_own_package, set_exit_code
from bundle.errors import BundleError, ExitCode
from bundle.overrides import CommandLine, load_config, nearest, parse_command_line


def run(arguments: Sequence[str]) -> int:
    """Run the workflow that `arguments` (what follows `run`) name; the same arguments as `monai.bundle run`."""
    return run_workflow(parse_command_line(arguments))


def run_workflow(line: CommandLine, *, quiet: bool = False) -> int:
    """Check the command line, then build and run its workflow; `quiet` leaves out the line that says what starts.

    Returns:
        The exit code that the workflow set, 0 when it set none.

    Raises:
        BundleError: before MONAI is imported, when the command line is wrong.
    """
    run_id = _check(line)
    set_exit_code(ExitCode.DONE)
    names = ", ".join(Path(file).name for file in line.config_files)
    if not quiet:
        # In one piece: print writes the end of the line by itself, and SIGTERM may come between.
        sys.stderr.write(f"ct-enhance {__version__}: {run_id} with {names}\n")
        sys.stderr.flush()
    # MONAI only warns of a key that is given twice, and the last one wins.
    os.environ.setdefault("MONAI_FAIL_ON_DUPLICATE_CONFIG", "1")
    from monai.bundle import ConfigWorkflow

    options = {key: value for key, value in line.options.items() if value is not None}
    for key in ("args_file", "run_id", "config_file"):
        options.pop(key, None)
    workflow = ConfigWorkflow(config_file=line.config_files, run_id=run_id, **options)
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return exit_code()


def _check(line: CommandLine) -> str:
    """Everything that can be told without building anything; returns the run id."""
    if not line.config_files:
        raise BundleError("config_file is required: name it with --config_file")
    for key in ("meta_file", "logging_file"):
        _require_file(key, line.options.get(key))
    config = load_config(line.config_files)
    require_own_package(line=line)
    check_overrides(line=line)
    run_id = str(line.positionals[0] if line.positionals else line.options.get("run_id") or "run")
    if run_id not in config:
        near = nearest(run_id, config)
        raise BundleError(f"unknown run id '{run_id}'", hint=f"did you mean {near}?" if near else _run_ids(config))
    return run_id


def _require_file(key: str, value: Any) -> None:
    if isinstance(value, str) and not Path(value).is_file():
        raise BundleError(f"{key} '{value}' does not exist", hint="check the path")


def _run_ids(config: dict[str, Any]) -> str:
    known = [name for name in ("training", "inference", "evaluation", "run") if name in config]
    return f"the config has: {', '.join(known)}" if known else "the config has no workflow to run"
