"""`python -m bundle prepare DIR --output_dir RUN`: the preparation of a training, ahead of time."""

from collections.abc import Sequence
from pathlib import Path

from bundle.commands.run import run_workflow
from bundle.configuration import bundle_root
from bundle.errors import BundleError
from bundle.overrides import CommandLine, parse_command_line

_USAGE = "python -m bundle prepare DIR --output_dir RUN [--key value ...]"


def prepare(arguments: Sequence[str]) -> int:
    """Prepare the data in `arguments[0]` as a training with the same options would, and print what became of them.

    Returns:
        The exit code: 3 when some series could not be used.

    Raises:
        BundleError: when DIR is missing, an option is wrong, or nothing is usable.
    """
    if not arguments or arguments[0].startswith("--"):
        raise BundleError("DIR is required", hint=_USAGE)
    rest = parse_command_line(arguments[1:])
    if rest.positionals:
        raise BundleError(f"unexpected argument '{rest.positionals[0]}'", hint=_USAGE)
    # The folder bypasses the parser of options, which would read one called 2024 as a number.
    options = {
        "config_file": str(Path(bundle_root()) / "configs" / "train.yaml"),
        **rest.options,
        "dataset_dir": arguments[0],
    }
    return run_workflow(CommandLine(("preparation",), options))
