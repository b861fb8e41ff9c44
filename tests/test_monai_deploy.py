"""The example application for MONAI Deploy, with a stand-in for the SDK: folders and failure are handed on rightly."""

import importlib.util
import sys
import types
from pathlib import Path

import pytest
import yaml

import bundle

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


def test_the_manifest_is_of_this_version():
    content = yaml.safe_load((FOLDER / "app.yaml").read_text().partition("---")[2])
    assert content["application"]["version"] == bundle.__version__
    assert {"cpu", "gpu", "memory"} <= content["resources"].keys()
