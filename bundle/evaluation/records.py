"""What was measured of each series, kept when it is finished: a stopped evaluation goes on with the next one."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bundle.evaluation.tables import Row
from bundle.files import digest, write_json

FOLDER = "series"


class Records:
    """Rows of finished series below an output folder, valid for one set of settings.

    Args:
        folder: the output folder.
        settings: everything that decides the rows: degradation, weights, methods.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder / FOLDER
        self.settings = digest(json.dumps(settings, sort_keys=True, default=str))

    def save(self, key: str, rows: Sequence[Row], problems: Mapping[str, str], missing: Mapping[str, str]) -> None:
        """Keep a finished series, whole or not at all."""
        content = {
            "settings": self.settings,
            "rows": [_plain(row) for row in rows],
            "problems": dict(problems),
            "missing": dict(missing),
        }
        write_json(self.folder / f"{key}.json", content)

    def load(self, key: str) -> tuple[list[Row], dict[str, str], dict[str, str]] | None:
        """Rows, problems and missing methods of a series; None when it is not finished or was of other settings."""
        try:
            content = json.loads((self.folder / f"{key}.json").read_text())
            if content["settings"] != self.settings:
                return None
            return [_row(entry) for entry in content["rows"]], content["problems"], content["missing"]
        except (OSError, ValueError, KeyError, TypeError):
            return None


# JSON has no NaN and no infinity; text keeps them apart.
def _plain(row: Row) -> dict[str, Any]:
    return {
        **{name: getattr(row, name) for name in ("series", "method", "trained_on", "kind")},
        "values": {name: _kept(value) for name, value in row.values.items()},
        "slices": {name: [_kept(float(value)) for value in values] for name, values in row.slices.items()},
    }


def _row(entry: Mapping[str, Any]) -> Row:
    values = {name: float(value) for name, value in entry["values"].items()}
    slices = {name: np.array([float(value) for value in found]) for name, found in entry["slices"].items()}
    return Row(entry["series"], entry["method"], entry["trained_on"], values, slices, entry["kind"])


def _kept(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
