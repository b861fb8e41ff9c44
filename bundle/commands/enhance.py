"""`ct-enhance INPUT OUTPUT`: the inference workflow for people who want no configs."""

from collections.abc import Sequence
from pathlib import Path

from bundle.commands.run import run_workflow
from bundle.configuration import bundle_root
from bundle.errors import BundleError
from bundle.overrides import CommandLine, parse_command_line


def enhance(arguments: Sequence[str]) -> int:
    """Restore the series below `arguments[0]` into `arguments[1]`; the rest are options of the inference config.

    Returns:
        The exit code that the workflow set, 0 when it set none.

    Raises:
        BundleError: when INPUT or OUTPUT is missing or something else is wrong.
    """
    folders = list(arguments[:2])
    if len(folders) < 2 or any(folder.startswith("--") for folder in folders):
        raise BundleError("INPUT and OUTPUT are required", hint="ct-enhance INPUT OUTPUT [--key value ...]")
    rest = parse_command_line(arguments[2:])
    if rest.positionals:
        raise BundleError(f"unexpected argument '{rest.positionals[0]}'", hint="options are written --key value")
    # The folders bypass the parser of options, which would read a folder called 2024 as a number.
    options = {
        "config_file": str(Path(bundle_root()) / "configs" / "inference.yaml"),
        **rest.options,
        "dataset_dir": folders[0],
        "output_dir": folders[1],
    }
    return run_workflow(CommandLine(("inference",), options))
