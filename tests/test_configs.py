"""The configs as MONAI and its users see them: properties, loading from elsewhere, shape check, twins."""

import re
import shlex
import shutil
from pathlib import Path

import monai.bundle
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from bundle.configuration import bundle_root
from bundle.networks.presets import PRESETS, build_restorer
from bundle.networks.restorer import Restorer
from bundle.overrides import check_options, load_config, parse_command_line
from bundle.training.handlers import save_weights

ROOT = Path(bundle_root())
WORKFLOWS = {"train": ("train", "training"), "inference": ("infer", "inference"), "evaluate": ("infer", "evaluation")}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    save_weights(build_restorer("small"), path)
    return path


@pytest.mark.parametrize("suffix", ["yaml", "json"])
@pytest.mark.parametrize("name", WORKFLOWS)
def test_monais_properties_are_all_there_and_reading_a_config_writes_nothing(
    name, suffix, weights, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    kind, run_id = WORKFLOWS[name]
    overrides = {} if name == "train" else {"weights_file": str(weights)}
    workflow = ConfigWorkflow(
        config_file=str(ROOT / "configs" / f"{name}.{suffix}"),
        meta_file=str(ROOT / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type=kind,
        run_id=run_id,
        **overrides,
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    assert not list(tmp_path.iterdir())


def test_load_from_another_directory_gives_the_network_with_its_weights(weights, tmp_path, monkeypatch):
    copy = tmp_path / "bundles" / "ct_enhancement"
    shutil.copytree(ROOT / "configs", copy / "configs")
    (copy / "models").mkdir()
    shutil.copy(weights, copy / "models" / "model.pt")
    monkeypatch.chdir(tmp_path)
    network = monai.bundle.load("ct_enhancement", bundle_dir=str(tmp_path / "bundles"), source="github")
    assert isinstance(network, Restorer)
    expected = torch.load(weights, weights_only=True)
    assert all(torch.equal(value, expected[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", WORKFLOWS)
def test_the_networks_input_and_output_are_as_the_metadata_say(name):
    monai.bundle.verify_net_in_out(
        net_id="network_def",
        meta_file=str(ROOT / "configs" / "metadata.json"),
        config_file=str(ROOT / "configs" / f"{name}.json"),
    )


@pytest.mark.parametrize("preset", ["full", "small"])
@pytest.mark.parametrize(
    ("name", "inferer"), [("train", "validate::inferer"), ("inference", "inferer"), ("evaluate", "inferer")]
)
def test_volumes_are_restored_in_the_presets_tiles(name, inferer, preset):
    """Attention on a whole plane of 512 x 512 pixels would take more memory than any machine has."""
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs" / f"{name}.yaml"))
    parser.update({"preset": preset, "device": "cpu", "mixed_precision": "off"})
    assert parser.get_parsed_content(inferer).tile_size == PRESETS[preset].tile_size


def test_the_makefiles_evaluation_has_configs_options_and_files_that_exist():
    (recipe,) = re.findall(r"^evaluate:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    words = shlex.split(recipe.replace("\\\n", " ").replace("$(ARGS)", "--dataset_dir CT --output_dir RESULTS"))
    assert words[1:4] == ["-m", "bundle", "run"]
    line = parse_command_line(words[4:])
    assert line.config_files == ["configs/evaluate.yaml", "configs/held_out.yaml"]
    config = load_config([ROOT / name for name in line.config_files])
    assert line.positionals == ("evaluation",) and "evaluation" in config
    check_options(line.options, config)
    assert len(line.options) > 8 and config["validation_folders"]
    named = [value for value in line.options.values() if isinstance(value, str) and "/" in value]
    assert len(named) == 3 and [name for name in named if not (ROOT / name).is_file()] == []
