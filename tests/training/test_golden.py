"""The loss curve of a small training, kept: a change of it has to be meant.

After a change that is meant: PYTHONPATH=tests python tests/training/test_golden.py writes the new curve.
"""

import json
from pathlib import Path

import pytest
import torch
from ignite.engine import Events
from training_fixtures import make_workflow, write_phantoms

GOLDEN = Path(__file__).resolve().parents[1] / "assets" / "golden_losses.json"


def losses(scans, output, cache):
    torch.use_deterministic_algorithms(True)
    workflow, trainer = make_workflow(scans, output, cache=cache, val_interval=100)
    seen = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: seen.append(e.state.output["loss"]))
    workflow.run()
    torch.use_deterministic_algorithms(False)
    return seen


def test_the_curve_is_the_one_that_is_kept(scans, cache, tmp_path):
    """All three phases. Tolerance: another processor adds in another order, which sixteen steps amplify."""
    expected = json.loads(GOLDEN.read_text())["losses"]
    assert losses(scans, tmp_path, cache) == pytest.approx(expected, rel=2e-3)


if __name__ == "__main__":
    import tempfile

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        about = "loss of each step of the tiny training of tests/training/test_golden.py; CPU, float32, one thread"
        curve = losses(write_phantoms(folder / "scans"), folder / "run", folder / "cache")
        GOLDEN.write_text(json.dumps({"about": about, "losses": curve}, indent=1) + "\n")
