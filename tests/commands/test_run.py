import pytest

from bundle.commands.main import main

CONFIG = """\
imports:
  - "$import bundle.configuration as configuration"
dataset_dir: null
folder: {name: x}
initialize: ["$configuration.guard()"]
training:
  - "$configuration.require_keys(dataset_dir=@dataset_dir)"
  - "$print('trained on', @dataset_dir, @folder#name)"
partial: ["$configuration.set_exit_code(3)"]
broken: ["$1 / 0"]
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "configs" / "train.yaml"
    path.parent.mkdir()
    path.write_text(CONFIG)
    return str(path)


def refused(capsys, *arguments):
    assert main(["run", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("error: ")
    return lines[-1].removeprefix("error: ")


def test_runs(config, capsys):
    assert main(["run", "training", "--config_file", config, "--dataset_dir", "here", "--folder#name", "y"]) == 0
    assert "trained on here y" in capsys.readouterr().out


def test_run_id_as_an_option(config, capsys):
    assert main(["run", "--run_id", "training", "--config_file", config, "--dataset_dir", "here"]) == 0
    assert "trained on here x" in capsys.readouterr().out


def test_several_configs_and_args_file(config, tmp_path, capsys):
    second = tmp_path / "configs" / "more.yaml"
    second.write_text("folder: {name: z}\n")
    arguments = tmp_path / "args.yaml"
    arguments.write_text(f"config_file: ['{config}', '{second}']\ndataset_dir: there\n")
    assert main(["run", "training", "--args_file", str(arguments)]) == 0
    assert "trained on there z" in capsys.readouterr().out


def test_a_workflow_sets_the_exit_code(config):
    assert main(["run", "partial", "--config_file", config]) == 3
    assert main(["run", "training", "--config_file", config, "--dataset_dir", "x"]) == 0


def test_a_defect(config, capsys):
    assert main(["run", "broken", "--config_file", config]) == 70
    assert "a defect of ours" in capsys.readouterr().err


def test_what_the_user_must_change(config, capsys, tmp_path):
    training = ("training", "--config_file", config)
    assert refused(capsys, "training") == "config_file is required: name it with --config_file"
    assert refused(capsys, *training) == "dataset_dir is required: name it with --dataset_dir"
    assert refused(capsys, *training, "--dataset_dri", "x") == (
        "unknown option --dataset_dri (did you mean --dataset_dir?)"
    )
    assert refused(capsys, *training, "--a#b", "1").startswith("unknown option --a#b")
    assert refused(capsys, *training, "--folder#nam", "1").endswith("(did you mean --folder#name?)")
    assert refused(capsys, "trainin", "--config_file", config) == "unknown run id 'trainin' (did you mean training?)"
    assert refused(capsys, "zzz", "--config_file", config) == "unknown run id 'zzz' (the config has: training)"
    assert refused(capsys, "training", "extra", "--config_file", config).startswith("unexpected argument 'extra'")
    assert "cannot be read" in refused(capsys, "training", "--config_file", str(tmp_path / "missing.yaml"))
    assert "does not exist" in refused(capsys, *training, "--meta_file", "missing.json")
