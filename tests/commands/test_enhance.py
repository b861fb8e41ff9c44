import pytest

from bundle.commands import enhance as module
from bundle.commands.enhance import enhance
from bundle.commands.main import ct_enhance, main
from bundle.errors import BundleError


@pytest.fixture
def started(monkeypatch):
    """The command lines that would be run."""
    lines = []
    monkeypatch.setattr(module, "run_workflow", lambda line: lines.append(line) or 3)
    return lines


def test_runs_the_inference_config(started):
    assert ct_enhance(["in", "out", "--steps", "4"]) == 3
    assert main(["enhance", "in", "out"]) == 3
    line = started[0]
    assert line.positionals == ("inference",)
    assert line.options["dataset_dir"] == "in" and line.options["output_dir"] == "out" and line.options["steps"] == 4
    assert line.config_files[0].endswith("configs/inference.yaml")


def test_folders_stay_text(started):
    enhance(["2024", "1,2"])
    assert started[0].options["dataset_dir"] == "2024" and started[0].options["output_dir"] == "1,2"


def test_another_config_may_be_named(started):
    enhance(["in", "out", "--config_file", "mine.yaml"])
    assert started[0].config_files == ["mine.yaml"]


@pytest.mark.parametrize("arguments", [["in"], ["in", "--steps", "4"], ["--steps", "4"], ["in", "out", "more"]])
def test_wrong_arguments(arguments, started):
    with pytest.raises(BundleError):
        enhance(arguments)
    assert started == []
