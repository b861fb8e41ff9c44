"""What the command line overrides in a config, and whether the config has it.

Standard library, PyYAML and fire only: a misspelt option is found before MONAI's five seconds of imports.
"""

import contextlib
import difflib
import inspect
import io
import json
import pydoc
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bundle.errors import BundleError

# Taken by `monai.bundle run` itself, so they need not be ids of the config.
MONAI_OPTIONS = frozenset("run_id init_id final_id meta_file config_file logging_file tracking args_file".split())
MONAI_OPTIONS |= {"workflow_type", "properties_path"}
# Added to the config by MONAI once `--tracking` is given.
TRACKING_OPTIONS = frozenset("output_dir tracking_uri experiment_name run_name save_execute_config".split())
COMPONENT_KEYS = frozenset({"_target_", "_disabled_", "_requires_", "_mode_", "_desc_"})


@dataclass(frozen=True)
class CommandLine:
    """The arguments of `run`: positionals in order, options by id (those of `--args_file` included)."""

    positionals: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def config_files(self) -> list[str]:
        """The config files, in the order in which they are merged."""
        named = self.options.get("config_file")
        if not named or named is True:
            return []
        if isinstance(named, str):
            # MONAI takes "a.yaml,b.yaml" as two files unless a file of that very name exists.
            return [named] if Path(named).is_file() else named.split(",")
        return [str(name) for name in named]


def parse_command_line(arguments: Sequence[str]) -> CommandLine:
    """Parse the arguments after `run` exactly as `monai.bundle run` does, by the same library.

    Raises:
        BundleError: when they cannot be understood, or `--args_file` cannot be read.
    """
    import fire

    found: list[CommandLine] = []

    def collect(*positionals: Any, **options: Any) -> None:
        found.append(CommandLine(positionals, options))

    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            fire.Fire(collect, command=list(arguments), name="run")
    except SystemExit as error:
        if error.code not in (0, None) or not found:
            raise BundleError(
                "the command line cannot be understood", hint="run RUN_ID --config_file FILE [--key value]"
            ) from error
    line = found[0]
    if isinstance(args_file := line.options.get("args_file"), str):
        return CommandLine(line.positionals, load_config_file(args_file) | line.options)
    return line


def current_command_line() -> CommandLine | None:
    """The command line of `python -m monai.bundle run` or `python -m bundle run`; None in any other process."""
    program = Path(sys.argv[0] if sys.argv else "")
    if program.name != "__main__.py" or program.parent.name != "bundle" or sys.argv[1:2] != ["run"]:
        return None
    return parse_command_line(sys.argv[2:])


def check_options(options: Iterable[str], config: dict[str, Any], *, tracking: bool = False) -> None:
    """Refuse the first option that is neither MONAI's nor an id of `config`.

    Raises:
        BundleError: names the nearest known option.
    """
    allowed = MONAI_OPTIONS | TRACKING_OPTIONS if tracking else MONAI_OPTIONS
    for option in options:
        if option not in allowed:
            _check_option(option, config)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The most similar of the known names, or None when nothing is alike."""
    return next(iter(difflib.get_close_matches(name, sorted(map(str, known)), n=1, cutoff=0.6)), None)


def load_config(files: Sequence[str | Path]) -> dict[str, Any]:
    """Merge config files as MONAI does: a later file replaces an id, or adds to it where the id starts with `+`.

    Raises:
        BundleError: a file is missing, cannot be parsed, or has a duplicate key.
    """
    merged: dict[str, Any] = {}
    for file in files:
        for key, value in load_config_file(file).items():
            _merge(merged, _parts(key), value, add=key.startswith("+"))
    return merged


def load_config_file(file: str | Path) -> dict[str, Any]:
    """Read one YAML or JSON file; duplicate keys are refused, because the last would win silently."""
    path = Path(file)
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".json":
            content = json.loads(text, object_pairs_hook=_unique)
        else:
            content = yaml.load(text, Loader=_UniqueKeyLoader)
    except OSError as error:
        raise BundleError(f"config file '{path}' cannot be read: {error.strerror}", hint="check the path") from error
    except (ValueError, yaml.YAMLError) as error:
        raise BundleError(f"config file '{path.name}' cannot be parsed: {error}") from error
    if not isinstance(content, dict):
        raise BundleError(f"config file '{path.name}' holds no keys")
    return content


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice in one mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build the mapping after checking its keys."""
        _unique([(self.construct_object(key, deep=True), None) for key, _ in node.value])  # type: ignore[no-untyped-call]
        return super().construct_mapping(node, deep)


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"duplicate key '{next(name for name in names if names.count(name) > 1)}'")
    return result


def _parts(option: str) -> list[str]:
    return option.lstrip("+").replace("#", "::").split("::")


def _merge(target: dict[str, Any], parts: list[str], value: Any, *, add: bool) -> None:
    for part in parts[:-1]:
        target = target.setdefault(part, {})
    old = target.get(parts[-1])
    if add and isinstance(old, dict) and isinstance(value, dict):
        value = old | value
    elif add and isinstance(old, list) and isinstance(value, list):
        value = old + value
    target[parts[-1]] = value


def _check_option(option: str, config: dict[str, Any]) -> None:
    parts = _parts(option)
    if parts[0] == "_meta_":  # metadata.json; MONAI reads it apart from the config
        return
    node: Any = config
    for depth, part in enumerate(parts):
        if isinstance(node, dict) and part in node:
            node = node[part]
        elif isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif depth == len(parts) - 1 and isinstance(node, dict) and _is_argument(node, part):
            return
        else:
            _refuse(option, parts[:depth], part, node)


def _refuse(option: str, parents: list[str], part: str, node: Any) -> None:
    if isinstance(node, dict) and (near := nearest(part, node)) is not None:
        hint = f"did you mean --{'#'.join([*parents, near])}?"
    elif parents:
        hint = f"'{'#'.join(parents)}' has no '{part}'"
    else:
        hint = "options are the keys of the config file"
    raise BundleError(f"unknown option --{option}", hint=hint)


def _is_argument(component: dict[str, Any], name: str) -> bool:
    """Whether `name` is a further argument of a component; True where that cannot be told without building it."""
    target = component.get("_target_")
    if not isinstance(target, str):
        return False
    if name in COMPONENT_KEYS or target.startswith(("$", "@", "%")) or "." not in target:
        return True
    with contextlib.suppress(Exception):  # what cannot be located or inspected is MONAI's to report
        parameters = inspect.signature(pydoc.locate(target)).parameters  # type: ignore[arg-type]
        return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return True
