import os
import subprocess
import sys
from pathlib import Path

import pytest

import bundle
from bundle import configuration
from bundle.configuration import (
    check_overrides,
    exit_code,
    flag,
    guard,
    require_keys,
    require_own_package,
    set_exit_code,
)
from bundle.errors import BundleError, ExitCode

ROOT = Path(bundle.__file__).resolve().parents[1]

# The form that the bundle's own configs have.
CONFIG = """\
imports:
  - "$import bundle.configuration as configuration"
own_package: "$monai.utils.optional_import('bundle.configuration')[1] or \
  __import__('sys').exit('error: another Python package named bundle hides this one (start in the bundle folder)')"
bundle_root: "$configuration.bundle_root()"
dataset_dir: null
seed: 0
initialize: ["$@own_package", "$configuration.guard(@bundle_root)"]
training:
  - "$@own_package"
  - "$configuration.guard(@bundle_root)"
  - "$configuration.require_keys(dataset_dir=@dataset_dir)"
  - "$print('trained', @seed)"
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "configs" / "train.yaml"
    path.parent.mkdir()
    path.write_text(CONFIG)
    return path


@pytest.fixture
def command(monkeypatch):
    """Make this process look like a run command."""
    hook = sys.excepthook

    def set_arguments(*arguments):
        monkeypatch.setattr(sys, "argv", ["monai/bundle/__main__.py", "run", *map(str, arguments)])

    yield set_arguments
    sys.excepthook = hook


def test_guard_leaves_other_processes_alone():
    hook = sys.excepthook
    assert guard(ROOT)
    assert sys.excepthook is hook


def test_guard_passes_and_can_be_repeated(config, command):
    command("training", "--config_file", config, "--seed", 3, "--dataset_dir", "x")
    assert guard(ROOT) and guard(ROOT)


def test_unknown_option(config, command):
    command("training", "--config_file", config, "--dataset_dri", "x")
    with pytest.raises(BundleError, match=r"^unknown option --dataset_dri \(did you mean --dataset_dir\?\)$"):
        guard(ROOT)
    with pytest.raises(BundleError):
        check_overrides(str(config))


def test_second_positional(config, command):
    command("training", "extra", "--config_file", config)
    with pytest.raises(BundleError, match="unexpected argument 'extra' after 'training'"):
        guard(ROOT)


def test_second_file_brings_options(config, command, tmp_path):
    other = tmp_path / "configs" / "more.yaml"
    other.write_text("nodes: 1\n")
    command("training", "--config_file", f"['{config}','{other}']", "--nodes", 2)
    assert guard(ROOT)


def test_another_copy_of_the_package_is_refused(tmp_path):
    copy = tmp_path / "copy" / "bundle"
    copy.mkdir(parents=True)
    (copy / "configuration.py").touch()
    with pytest.raises(BundleError, match="another copy's") as caught:
        require_own_package(tmp_path / "copy")
    assert str(tmp_path) not in str(caught.value)
    require_own_package(ROOT)
    require_own_package(tmp_path)


@pytest.mark.parametrize("value", [None, True, "", "none", "null"])
def test_required_keys(value):
    with pytest.raises(BundleError, match=r"^dataset_dir is required: name it with --dataset_dir$"):
        require_keys(output_dir="x", dataset_dir=value)


def test_present_keys():
    assert require_keys(dataset_dir="x", seed=0)


def test_bundle_root_holds_the_configs():
    assert (Path(configuration.bundle_root()) / "configs" / "metadata.json").is_file()


def test_exit_code():
    set_exit_code(3)
    assert exit_code() is ExitCode.PARTIAL
    set_exit_code(ExitCode.DONE)
    assert exit_code() == 0


def monai_run(*arguments, cwd=None, path=ROOT):
    environment = os.environ | {"PYTHONPATH": str(path)}
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, check=False)


def test_monais_own_command_ends_in_one_line(config):
    done = monai_run("training", "--config_file", config, "--dataset_dri", "x")
    assert done.returncode == 1
    assert "error: unknown option --dataset_dri (did you mean --dataset_dir?)" in done.stderr.splitlines()
    assert "Traceback" not in done.stderr


def test_monais_own_command_refuses_a_second_positional(config):
    done = monai_run("training", "extra", "--config_file", config, "--dataset_dir", "x")
    assert done.returncode == 1 and "trained" not in done.stdout
    assert "error: unexpected argument 'extra' after 'training' (options are written --key value)" in done.stderr
    assert "Traceback" not in done.stderr


# An editable install's finder comes before the working folder; without it, the working folder wins.
WITHOUT_EDITABLE_FINDER = """\
import runpy, sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
sys.path.insert(0, "")
runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
"""


def test_a_foreign_bundle_package_is_refused(config, tmp_path):
    (tmp_path / "cwd" / "bundle").mkdir(parents=True)
    (tmp_path / "cwd" / "bundle" / "__init__.py").touch()
    arguments = ["run", "training", "--config_file", str(config), "--dataset_dir", "x"]
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_EDITABLE_FINDER, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path / "cwd", check=False)
    assert done.returncode == 1 and "trained" not in done.stdout
    assert "error: another Python package named bundle hides this one" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("value", "expected"), [(True, True), ("true", True), ("False", False), (False, False)])
def test_a_switch_is_read_however_it_was_written(value, expected):
    assert flag(value) is expected


@pytest.mark.parametrize("value", ["maybe", None, 1, ""])
def test_a_switch_that_is_none_is_refused(value):
    with pytest.raises(BundleError, match="neither true nor false"):
        flag(value)
