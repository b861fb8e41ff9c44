"""Write the JSON twin of every config, for programs that read JSON only (monai.bundle.load, MONAI Label).

python scripts/make_json_twins.py          writes configs/X.json for every configs/X.yaml
python scripts/make_json_twins.py --check  writes nothing; exit code 2 when a twin is missing or differs

Parts (configs/parts/) get none: MONAI resolves a macro to a YAML file from a JSON config as well.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bundle.errors import BundleError, report
from bundle.overrides import load_config_file

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
# YAML 1.1 as PyYAML reads it takes 1e-4 for text; the optimizer would fail on it much later.
TEXT_THAT_LOOKS_LIKE_A_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")


def twin_text(config: Path) -> str:
    """The JSON text of a YAML config.

    Raises:
        BundleError: for what JSON cannot say, duplicate keys, and numbers that YAML reads as text.
    """
    content = load_config_file(config)
    for where, value in _walk(content, ""):
        if isinstance(value, str) and TEXT_THAT_LOOKS_LIKE_A_NUMBER.fullmatch(value):
            raise BundleError(f"{config.name}: {where} is the text '{value}'", hint="write numbers as 1.0e-4")
    try:
        text = json.dumps(content, indent=4, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise BundleError(f"{config.name} cannot be written as JSON: {error}") from error
    if json.loads(text) != content:
        raise BundleError(f"{config.name} has keys that are not text", hint="put them in quotes")
    return text


def twins(configs: Path) -> Iterator[tuple[Path, str]]:
    """Each twin's path and the text it must have."""
    for config in sorted(configs.glob("*.yaml")):
        yield config.with_suffix(".json"), twin_text(config)


def stale(configs: Path) -> list[str]:
    """Names of the twins that are missing or differ from their YAML."""
    return [twin.name for twin, text in twins(configs) if not twin.is_file() or twin.read_text() != text]


def main() -> None:
    """Write the twins, or check them."""
    parser = argparse.ArgumentParser(description="Write the JSON twin of every config.")
    parser.add_argument("--check", action="store_true", help="only say whether they are up to date")
    parser.add_argument("--configs", type=Path, default=CONFIGS, help="the folder of the configs")
    options = parser.parse_args()
    if options.check:
        if names := stale(options.configs):
            raise BundleError(f"not up to date: {', '.join(names)}", hint="python scripts/make_json_twins.py")
        return
    for twin, text in twins(options.configs):
        twin.write_text(text)
        print(f"wrote {twin.name}")


def _walk(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    yield where, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _walk(item, f"{where}#{key}" if where else str(key))


if __name__ == "__main__":
    try:
        main()
    except BundleError as error:
        sys.exit(report(error))
