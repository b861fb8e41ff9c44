import json
import types

import pytest
import torch
import yaml
from training_fixtures import ROOT, equal

from bundle.errors import BundleError, ExitCode
from bundle.files import file_digest
from bundle.networks.presets import build_restorer
from bundle.networks.weights import save_weights
from bundle.overrides import CommandLine
from bundle.training import start
from bundle.training.optim import MovingAverage
from bundle.training.start import start_run


class NoData:
    skipped: dict = {}  # noqa: RUF012
    revision = ""
    awaited = 0
    split = types.SimpleNamespace(train=(), validation=(), validation_on="nobody")

    def write_summary(self, path):
        path.write_text("{}")


def test_starting_weights_reach_network_and_average(tmp_path):
    torch.manual_seed(1)
    source, network = build_restorer("tiny"), build_restorer("tiny")
    average = MovingAverage(network, decay=0.9)
    digest = save_weights(source, tmp_path / "model.pt")
    assert digest == file_digest(tmp_path / "model.pt")
    start_run(tmp_path / "run", network, average, tmp_path / "model.pt", NoData())
    assert equal(dict(network.state_dict()), dict(source.state_dict()))
    assert equal(dict(average.module.state_dict()), dict(source.state_dict()))
    assert (tmp_path / "run" / "data.json").is_file()


def test_a_folder_that_cannot_be_written_to_is_found_before_anything_is_read(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="output_dir 'run' cannot be written to") as caught:
        start_run(tmp_path / "file" / "run", None, None, None, None)
    assert caught.value.exit_code == ExitCode.IO


def test_what_was_loaded_and_what_not_is_written_down(tmp_path):
    source, network = build_restorer("tiny"), build_restorer("tiny")
    part = {name: value for name, value in source.state_dict().items() if name.startswith("autoencoder.")}
    torch.save({**part, "more": torch.zeros(1)}, tmp_path / "part.pt")
    average = MovingAverage(network, decay=0.9)
    start_run(tmp_path / "run", network, average, tmp_path / "part.pt", NoData())
    report = json.loads((tmp_path / "run" / "starting_weights.json").read_text())
    assert report["loaded"] == list(part) and report["unused"] == ["more"]
    assert {name.split(".")[0] for name in report["keep_their_start"]} >= {"denoiser", "refiner"}
    assert equal(dict(average.module.state_dict()), dict(network.state_dict()))


def test_settings_and_machine_are_written_down(tmp_path):
    start_run(tmp_path / "run", None, None, None, NoData(), settings={"seed": 3})
    written = json.loads((tmp_path / "run" / "run.json").read_text())
    assert written["settings"] == {"seed": 3}
    assert written["environment"]["torch_version"] == str(torch.__version__)
    assert not (tmp_path / "run" / "config.yaml").exists()  # nobody named a config on a command line


def test_the_config_is_written_as_it_was_merged_without_names_of_folders(tmp_path):
    files = [str(ROOT / "configs" / name) for name in ("train.yaml", "multi_gpu.yaml")]
    options = {"config_file": files, "dataset_dir": "MILLER_ANNA", "seed": 5, "train#trainer#clip_norm": 2.0}
    start._write_config(tmp_path / "config.yaml", CommandLine((), options))
    text = (tmp_path / "config.yaml").read_text()
    written = yaml.safe_load(text)
    assert written["seed"] == 5 and written["train"]["trainer"]["clip_norm"] == 2.0 and written["backend"] == "auto"
    assert "MILLER" not in text and written["dataset_dir"] == "(given)"


def test_several_processes_need_their_config(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BundleError, match=r"add configs/multi_gpu\.yaml"):
        start_run(tmp_path / "run", None, None, None, NoData())
