"""Guards that configs call, so that a mistake on the command line ends in one line, whoever runs the workflow.

A config calls `guard` in `initialize` and again in its run expression: a second positional of
`monai.bundle run` replaces the name of `initialize`, which is then skipped without a word. Calling it twice
costs nothing. Where the process is not a `run` command (a notebook, a server) there is no command line to
check, and its excepthook is left alone.
"""

import math
import numbers
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from bundle.errors import BundleError, ExitCode, install_excepthook
from bundle.overrides import CommandLine, check_options, current_command_line, load_config

_Number = TypeVar("_Number", int, float)
_exit_code = ExitCode.DONE


def guard(bundle_root: str | Path | None = None, *, config_file: str | Sequence[str] | None = None) -> bool:
    """Check this process's command line and package; True when nothing is wrong.

    Args:
        bundle_root: the folder that holds `configs/` and the package; None takes the package's own.
        config_file: the config (or configs) that options are looked up in; None takes what the command line names.

    Raises:
        BundleError: with what is wrong, in one line.
    """
    line = current_command_line()
    if line is not None:
        install_excepthook()
    require_own_package(bundle_root, line=line)
    check_overrides(config_file, line=line)
    return True


def check_overrides(config_file: str | Sequence[str] | None = None, *, line: CommandLine | None = None) -> None:
    """Refuse options that the config does not have, and positionals after the run id.

    Args:
        config_file: the config (or configs) that options are looked up in; None takes what the command line names.
        line: the command line; None takes this process's, if it is one of a `run` command.

    Raises:
        BundleError: names the option and the nearest known one.
    """
    line = line or current_command_line()
    if line is None:
        return
    if len(line.positionals) > 1:
        first, second = line.positionals[:2]
        raise BundleError(f"unexpected argument '{second}' after '{first}'", hint="options are written --key value")
    files = [config_file] if isinstance(config_file, str) else list(config_file or line.config_files)
    if files:
        check_options(line.options, load_config(files), tracking=line.options.get("tracking") is not None)


def require_own_package(bundle_root: str | Path | None = None, *, line: CommandLine | None = None) -> None:
    """Refuse to go on when the configs belong to one copy of this bundle and the imported package to another.

    A package of the same name without this module cannot get here; configs catch it before they call `guard`.

    Raises:
        BundleError: names both folders, without what is above them.
    """
    roots = [Path(bundle_root)] if bundle_root is not None else []
    roots += [Path(file).resolve().parent.parent for file in (line.config_files if line else [])]
    here = Path(__file__).resolve()
    for root in roots:
        other = root / "bundle" / here.name
        if other.is_file() and other.resolve() != here:
            raise BundleError(
                f"the configs are from '{root.resolve().name}', but the Python package 'bundle' is another copy's",
                hint="start in that folder, or install it with: pip install -e .",
            )


def require_keys(**values: Any) -> bool:
    """Refuse keys without a value: `require_keys(dataset_dir=@dataset_dir)` in a config.

    Raises:
        BundleError: names the first key that has none.
    """
    for key, value in values.items():
        # fire gives True for an option without a value, and keeps `null` and `none` as text.
        if value is None or value is True or str(value).strip().lower() in ("", "null", "none"):
            raise BundleError(f"{key} is required: name it with --{key}")
    return True


def require_apart(*, dataset_dir: Any, output_dir: Any) -> bool:
    """Refuse an output folder that is the input or lies in it: the next run would find this one's results there.

    Raises:
        BundleError: when it does.
    """
    source, target = (Path(str(folder)).resolve() for folder in (dataset_dir, output_dir))
    if source.is_dir() and source in (target, *target.parents):
        raise BundleError("output_dir lies in dataset_dir", hint="name a folder outside it with --output_dir")
    return True


def flag(value: Any) -> bool:
    """Read a switch: fire keeps `false` and `true` in lower case as text, and any text would count as true.

    Raises:
        BundleError: when it is neither.
    """
    text = str(value).strip().lower()
    if text not in ("true", "false"):
        raise BundleError(f"'{value}' is neither true nor false")
    return text == "true"


def checked_number(
    name: str,
    value: Any,
    kind: type[_Number],
    *,
    low: float = -math.inf,
    high: float = math.inf,
    below: float = math.inf,
) -> _Number:
    """Return `value` of the key `name` as a number of `kind`: the command line may hold anything in its place.

    Args:
        name: the key, for the message.
        value: what was given.
        kind: int takes whole numbers only.
        low: the least that is allowed.
        high: the most that is allowed.
        below: what it has to stay below.

    Raises:
        BundleError: when it is no such number.
    """
    accepted: Any = numbers.Integral if kind is int else numbers.Real
    # bool is a number to Python; here it is an option without a value.
    fits = isinstance(value, accepted) and not isinstance(value, bool) and low <= value <= high and value < below
    if not fits:
        least = "" if low == -math.inf else f", at least {low:g}"
        most = f", at most {high:g}" if high < math.inf else f", below {below:g}" if below < math.inf else ""
        what = "a whole number" if kind is int else "a number"
        raise BundleError(f"{name} must be {what}{least}{most}, not {value}", hint=f"--{name} VALUE")
    return kind(value)


def three_numbers(name: str, values: Any, kind: type[_Number], *, low: float = -math.inf) -> tuple[_Number, ...]:
    """Return the three values of the key `name`, for rows, columns and slices; as `checked_number`.

    Raises:
        BundleError: when they are not three, or one is no such number.
    """
    if isinstance(values, str) or not isinstance(values, Iterable) or len(listed := list(values)) != 3:
        raise BundleError(
            f"{name} must be three numbers (rows, columns, slices), not {values}", hint=f"--{name} [A,B,C]"
        )
    return tuple(checked_number(name, value, kind, low=low) for value in listed)


def bundle_root() -> str:
    """The folder that holds `configs/` and `models/`: the checkout, or the data of an installed package."""
    package = Path(__file__).resolve().parent
    for root in (package.parent, package / "_bundle"):
        if (root / "configs").is_dir():
            return str(root)
    raise BundleError("the bundle's configs are not installed", hint="install from a checkout with: pip install -e .")


def set_exit_code(code: ExitCode | int) -> None:
    """Say what the run command shall return when the workflow ends without an error."""
    global _exit_code
    _exit_code = ExitCode(code)


def exit_code() -> ExitCode:
    """What the workflow set with `set_exit_code`; DONE when it set nothing."""
    return _exit_code
