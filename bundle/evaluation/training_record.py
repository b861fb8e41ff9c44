"""Which series the evaluated weights were trained on, as their training run noted it."""

import json
from pathlib import Path


def training_file_of(weights_file: str | Path) -> Path:
    """Return where the note of a weights file lies: `X_data.json` beside X.pt, or a training run's own data.json."""
    weights = Path(weights_file)
    own = weights.with_name(f"{weights.stem}_data.json")
    return own if own.is_file() or weights.stem != "model" else weights.with_name("data.json")


class TrainingRecord:
    """What a training run's data.json says of each series.

    Args:
        training_file: the file; where there is none, or it cannot be read, nothing is claimed of any series.
    """

    def __init__(self, training_file: str | Path | None) -> None:
        self._said: dict[str, str] | None = None
        try:
            content = json.loads(Path(training_file).read_text()) if training_file else None
        except (OSError, ValueError):
            return
        if isinstance(content, dict):
            validated = {entry["series"]: "validated on during training" for entry in content.get("validation", [])}
            self._said = validated | {entry["series"]: "also trained on" for entry in content.get("train", [])}

    def of(self, key: str) -> str:
        """Return what is known of the series with this key, in words."""
        return "training data unknown" if self._said is None else self._said.get(key, "not trained on")
