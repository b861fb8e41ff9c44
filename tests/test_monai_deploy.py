"""The example application for MONAI Deploy, with a stand-in for the SDK: folders and failure are handed on rightly."""

import importlib.util
import os
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import pytest
import yaml

import bundle
from bundle.commands.pack import write_archive
from bundle.configuration import bundle_root

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "monai_deploy"


class Operator:
    def __init__(self, fragment, *arguments, name=""):
        self.name, self.conditions = name, arguments


class Application:
    argv = ("app.py", "-i", "IN", "-o", "OUT")

    @staticmethod
    def init_app_context(argv):
        return types.SimpleNamespace(input_path=argv[argv.index("-i") + 1], output_path=argv[argv.index("-o") + 1])

    def add_operator(self, operator):
        self.operators = [*getattr(self, "operators", []), operator]

    def run(self):
        self.compose()
        for operator in self.operators:
            operator.compute(None, None, None)


@pytest.fixture
def app(monkeypatch):
    core = types.ModuleType("monai.deploy.core")
    core.Application, core.Operator, core.OperatorSpec = Application, Operator, object
    conditions = types.ModuleType("monai.deploy.conditions")
    conditions.CountCondition = lambda fragment, count: ("count", count)
    for module in (types.ModuleType("monai.deploy"), core, conditions):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    spec = importlib.util.spec_from_file_location("deploy_example", FOLDER / "app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("code", "fails"), [(0, False), (3, False), (2, True), (74, True), (75, True)])
def test_the_folders_are_restored_once_and_failure_is_said(app, monkeypatch, code, fails):
    called = []
    monkeypatch.setattr(app, "ct_enhance", lambda arguments: called.append(arguments) or code)
    application = app.RestoreApplication()
    if fails:
        with pytest.raises(RuntimeError, match=f"exit code {code}"):
            application.run()
    else:
        application.run()
    assert called == [["IN", "OUT"]]
    assert [operator.conditions for operator in application.operators] == [(("count", 1),)]


def test_a_packaged_application_finds_the_bundle_among_its_models(tmp_path):
    """As the packager lays it out: the unpacked archive below HOLOSCAN_MODEL_PATH, and nothing installed."""
    write_archive(tmp_path / "ct.zip", root=Path(bundle_root()))
    with zipfile.ZipFile(tmp_path / "ct.zip") as archive:
        archive.extractall(tmp_path / "models")
    sdk = "; ".join(
        f"sys.modules['{name}'] = mock.MagicMock()" for name in ("monai.deploy.core", "monai.deploy.conditions")
    )
    code = f"import sys, runpy; from unittest import mock; {sdk}; app = runpy.run_path(sys.argv[1], run_name='app'); "
    code += "import bundle.configuration as c; print(app['ct_enhance'].__code__.co_filename, c.bundle_root())"
    told = subprocess.run(
        [sys.executable, "-c", code, str(FOLDER / "app.py")], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "HOLOSCAN_MODEL_PATH": str(tmp_path / "models")},
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    packed = tmp_path / "models" / "ct_enhancement"
    assert told.stdout.split() == [str(packed / "bundle" / "commands" / "main.py"), str(packed)]
    assert (packed / "requirements.txt").is_file() and (packed / "models" / "model.pt").is_file()


def test_the_manifest_is_of_this_version():
    content = yaml.safe_load((FOLDER / "app.yaml").read_text().partition("---")[2])
    assert content["application"]["version"] == bundle.__version__
    assert {"cpu", "gpu", "memory"} <= content["resources"].keys()
