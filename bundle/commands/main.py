"""The entry points: `python -m bundle COMMAND` and `ct-enhance INPUT OUTPUT`."""

import contextlib
import importlib
import io
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

from bundle import __version__
from bundle.commands.worker_notes import leave_note
from bundle.errors import BundleError, ExitCode, InterruptedRun, report

# Each is bundle/commands/NAME.py.
_COMMANDS = ("run", "launch", "inspect", "prepare", "doctor", "export", "pack", "pacs")

_EXIT_CODES = """\
exit codes:
  0   done
  2   something must be changed first; the message says what
  3   done, but some series were refused or failed (listed in summary.json)
  70  a defect of this program; the message names the file with the traceback
  74  input or output failed (disk full, read-only folder)
  75  interrupted; run the same command again to go on
"""

_HELP = f"""\
Restore poor CT series. Research use only.

usage:
  python -m bundle run RUN_ID --config_file FILE [--key value ...]
      Run a workflow (training, inference, evaluation) of a config, with the
      same arguments as `python -m monai.bundle run`, and the exit codes below.
  python -m bundle launch [torchrun's options] run training --config_file FILE
      The same in several processes, through torchrun; it always ends with one
      of the exit codes below, and passes SIGTERM on.
  python -m bundle enhance INPUT OUTPUT [--key value ...]
      Restore the CT series below the folder INPUT into the folder OUTPUT.
  python -m bundle inspect DIR [--json] [--noise false] [--gaps resample]
      Say which series below the folder DIR would be used, and why the others
      would not; --noise false reads headers only.
  python -m bundle prepare DIR --output_dir RUN [--key value ...]
      Prepare the data of a training ahead of time; print what is used, and
      the split.
  python -m bundle doctor [--json]
      Check packages, decoders, device, number formats, weights and disk.
  python -m bundle export OUTPUT [--formats torch,onnx] [--key value ...]
      Write the networks as torch.export programs and ONNX, checked against
      PyTorch.
  python -m bundle pack OUTPUT.zip [--torchscript true]
      Write the bundle with its package as one archive for other programs.
  python -m bundle pacs --url URL --work_dir DIR [--match RULE] [--key value]
      Restore the new CT series of a PACS (DICOMweb) and send the derived series
      back.
  python -m bundle --help | --version

{_EXIT_CODES}"""

_ENHANCE_HELP = f"""\
Restore the CT series below the folder INPUT into the folder OUTPUT.
Research use only.

usage: ct-enhance INPUT OUTPUT [--key value ...]
       ct-enhance VIDEO_OR_PICTURES OUTPUT.mp4 [--window "[50,400]"]
                  [--frames_per_second 10] [--key value ...]

  --steps N             1 (default): the mean; more: draws with natural texture
  --num_samples N       mean of N draws; their spread is written as uncertainty
  --sampler NAME        bridge, ddim, ddpm or dpm_solver: only what the weights
                        were trained under, which auto (default) takes
  --flips 4             one step averaged over mirror images: four times the
                        time, errors 1 % less
  --strength S          0: the input bit for bit; 1 (default): the restoration
  --slice_spacing_mm X  thin slices, X mm apart, from thick ones
  --task NAME           which weights: denoise (default), or thin (default with
                        --slice_spacing_mm)
  --strict_domain true  refuse series unlike those the weights were made for
  --shard I/N           only one of N shares of the folder, I from 0
  --report true         also an HTML report per series, which opens offline
  --device NAME         cpu, cuda, cuda:1; default: a GPU where there is one
  --dry_run             say what would be done; estimates time and memory
  --json                print the result (or the plan) as JSON, no identifiers
  --quiet               no progress, errors only
Every key of configs/inference.yaml can be given as --key value.

{_EXIT_CODES}"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `python -m bundle`; `argv` is what follows that, None takes the process's.

    Returns:
        The exit code (see `bundle.errors.ExitCode`).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments else "--help"
    if command == "enhance":
        return ct_enhance(arguments[1:])
    if command in ("-h", "--help", "help") or (
        command in _COMMANDS and command != "pacs" and _asks_for_help(arguments)
    ):
        print(_HELP, end="")
        return ExitCode.DONE
    if command == "--version":
        return _print_version()
    return _reported(lambda: _dispatch(command, arguments[1:]), leave=leave_note if command == "run" else None)


def ct_enhance(argv: Sequence[str] | None = None) -> int:
    """Run `ct-enhance`; `argv` is what follows that, None takes the process's.

    Returns:
        The exit code (see `bundle.errors.ExitCode`).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or _asks_for_help(arguments):
        print(_ENHANCE_HELP, end="")
        return ExitCode.DONE
    if arguments[0] == "--version":
        return _print_version()
    return _reported(lambda: _enhance(arguments))


def _dispatch(command: str, arguments: Sequence[str]) -> int:
    if command not in _COMMANDS:
        raise BundleError(f"unknown command '{command}'", hint="python -m bundle --help lists the commands")
    # Imported when asked for: torch and MONAI take seconds, and most commands need only some of it.
    return int(getattr(importlib.import_module(f"bundle.commands.{command}"), command)(arguments))


def _enhance(arguments: Sequence[str]) -> int:
    from bundle.commands.enhance import enhance

    return enhance(arguments)


def _asks_for_help(arguments: Sequence[str]) -> bool:
    return any(argument in ("-h", "--help") for argument in arguments)


def _print_version() -> int:
    print(f"ct-enhance {__version__}")
    return ExitCode.DONE


def _reported(action: Callable[[], int], *, leave: Callable[[int, str], None] | None = None) -> int:
    """The action's exit code; an error becomes one line and the code that goes with it. `leave` is told both."""
    line = io.StringIO()
    with _sigterm_interrupts() as settled:
        try:
            code = action()
            settled()
        except SystemExit as error:  # a config's own check; a text is its message
            settled()
            told = isinstance(error.code, str)
            line.write(f"{error.code}\n" if told else "")
            code = ExitCode.USER if told else int(error.code or ExitCode.DONE)
        except BaseException as error:
            settled()
            with contextlib.redirect_stderr(line):
                code = report(error)
        # In one piece: beside other processes, or when killed, half a line would be left.
        sys.stderr.write(line.getvalue())
        sys.stderr.flush()
        if leave is not None:
            leave(code, line.getvalue().strip())
    return code


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[Callable[[], None]]:
    """Turn SIGTERM into InterruptedRun, so that files are closed and the exit code says `start again`.

    A workflow that can checkpoint first installs its own handler over this one. What is yielded makes SIGTERM mean
    nothing until the end: the code is settled then, and a launcher's SIGTERM must not keep a worker from leaving it.
    """

    def interrupt(number: int, frame: object) -> None:
        raise InterruptedRun("stopped by SIGTERM")

    def settled() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield lambda: None
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield settled
    finally:
        signal.signal(signal.SIGTERM, before)
