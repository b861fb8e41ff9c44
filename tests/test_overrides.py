import json
import sys

import pytest

from bundle.errors import BundleError
from bundle.overrides import (
    check_options,
    current_command_line,
    load_config,
    load_config_file,
    nearest,
    parse_command_line,
)

CONFIG = {
    "dataset_dir": None,
    "learning_rate": 1.0e-4,
    "layer_lr_multipliers": {"unet": 1.0},
    "network_def": {"_target_": "torch.nn.Linear", "in_features": 1},
    "flexible": {"_target_": "builtins.dict", "a": 1},
    "transforms": [{"_target_": "LoadImaged", "keys": "image"}, "@x"],
    "train": {"trainer": {"_target_": "ignite.engine.Engine", "max_epochs": 1}},
    "linked": "@train",
}


def refused(option):
    with pytest.raises(BundleError) as caught:
        check_options([option], CONFIG)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_parses_values_as_fire_does():
    line = parse_command_line(
        [
            "training",
            "--config_file",
            "c.yaml",
            "--lr",
            "1e-3",
            "--flag",
            "--a#b=[1, 2]",
            "--n",
            "-1",
            "--data-dir",
            "x",
        ]
    )
    assert line.positionals == ("training",)
    assert line.options == {
        "config_file": "c.yaml", "lr": 1e-3, "flag": True, "a#b": [1, 2], "n": -1, "data_dir": "x",
    }  # fmt: skip


def test_several_config_files():
    assert parse_command_line(["--config_file", "['a.yaml','b.yaml']"]).config_files == ["a.yaml", "b.yaml"]
    assert parse_command_line(["--config_file", "a.yaml,b.yaml"]).config_files == ["a.yaml", "b.yaml"]
    assert parse_command_line([]).config_files == []
    assert parse_command_line(["--config_file"]).config_files == []


def test_args_file_gives_defaults(tmp_path):
    (tmp_path / "args.json").write_text('{"config_file": "a.yaml", "seed": 1}')
    line = parse_command_line(["run", "--args_file", str(tmp_path / "args.json"), "--seed", "2"])
    assert line.options["config_file"] == "a.yaml" and line.options["seed"] == 2


@pytest.mark.parametrize(
    "option",
    [
        "dataset_dir", "+dataset_dir", "layer_lr_multipliers#unet", "layer_lr_multipliers::unet",
        "train#trainer::max_epochs", "transforms#0#keys", "transforms#0#allow_missing_keys", "transforms#1",
        "network_def#bias", "network_def#_disabled_", "flexible#anything", "_meta_#version",
        "config_file", "bundle_root_is_a_config_key_not_monais",
    ],
)  # fmt: skip
def test_known_options_pass(option):
    check_options([option], CONFIG | {"bundle_root_is_a_config_key_not_monais": 1})


def test_unknown_options_name_the_nearest():
    assert refused("dataset_dri") == "unknown option --dataset_dri (did you mean --dataset_dir?)"
    assert "did you mean --layer_lr_multipliers#unet?" in refused("layer_lr_multipliers#unett")
    assert "did you mean --layer_lr_multipliers?" in refused("layer_lr_multiplier#unet")
    assert "unknown option --network_def#in_feature" in refused("network_def#in_feature")
    assert "'train' has no 'evaluator'" in refused("train#evaluator#max_epochs")
    assert "options are the keys" in refused("zzz")
    assert "unknown option" in refused("transforms#7")
    assert "unknown option" in refused("linked#trainer")
    assert "unknown option" in refused("dataset_dir#x")


def test_tracking_brings_options():
    check_options(["tracking_uri"], CONFIG, tracking=True)
    with pytest.raises(BundleError):
        check_options(["tracking_uri"], CONFIG)


@pytest.mark.parametrize(("name", "text"), [("a.yaml", "a: 1\na: 2\n"), ("a.json", '{"a": 1, "a": 2}')])
def test_duplicate_keys_are_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(BundleError, match="duplicate key 'a'"):
        load_config_file(tmp_path / name)


def test_nested_duplicate_keys_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("x:\n  a: 1\n  a: 2\n")
    with pytest.raises(BundleError, match="duplicate key 'a'"):
        load_config_file(tmp_path / "a.yaml")


@pytest.mark.parametrize(("text", "message"), [("a: [", "cannot be parsed"), ("- 1", "no keys"), ("", "no keys")])
def test_unreadable_configs(tmp_path, text, message):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(BundleError, match=message):
        load_config_file(tmp_path / "a.yaml")
    with pytest.raises(BundleError, match="cannot be read"):
        load_config_file(tmp_path / "missing.yaml")


def test_merging_is_monais(tmp_path):
    from monai.bundle import ConfigParser

    first = {"a": {"x": 1, "y": 2}, "b": [1], "c": {"d": 1}, "e": {"f": {"g": 1}}}
    second = {"a": {"z": 3}, "+b": [2], "+c": {"h": 4}, "e#f#g": 5, "new": 6}
    for name, content in (("1.json", first), ("2.json", second)):
        (tmp_path / name).write_text(json.dumps(content))
    files = [str(tmp_path / "1.json"), str(tmp_path / "2.json")]
    assert load_config(files) == ConfigParser.load_config_files(files)


def test_nearest():
    assert nearest("trainin", ["training", "inference"]) == "training"
    assert nearest("zzz", ["training"]) is None


def test_only_run_commands_have_a_command_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pytest", "run", "--x", "1"])
    assert current_command_line() is None
    monkeypatch.setattr(sys, "argv", ["site/monai/bundle/__main__.py", "verify_metadata", "--x", "1"])
    assert current_command_line() is None
    monkeypatch.setattr(sys, "argv", ["site/monai/bundle/__main__.py", "run", "training", "--x", "1"])
    assert current_command_line().options == {"x": 1}
