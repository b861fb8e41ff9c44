"""The Dockerfile: pinned, numeric user, signals, caches, and what goes to the builder."""

import os
import re
import subprocess
import tomllib

import pytest
from manifest_rules import DOCKERFILE, FINAL_STAGE
from manifests import K8S, ROOT, tool


def test_image_is_pinned_numeric_and_gets_signals():
    base = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE, re.M)[1]
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", base)
    assert re.findall(r"^FROM (\S+)", DOCKERFILE, re.M) == ["${PYTHON_IMAGE}"] * 2
    assert re.search(r"^USER \d+:\d+$", FINAL_STAGE, re.M)
    assert re.search(r'^ENTRYPOINT \["python", "-m", "bundle"\]$', FINAL_STAGE, re.M)


def test_final_stage_builds_nothing():
    assert re.search(r"\b(apt-get|pip install|gcc|g\+\+|build-essential)\b", FINAL_STAGE) is None


def test_caches_are_on_the_writable_folder():
    variables = dict(re.findall(r"(\w+)=(\S+?)(?: \\)?$", FINAL_STAGE[FINAL_STAGE.index("\nENV ") :], re.M))
    folders = {name: value for name, value in variables.items() if re.search("HOME|DIR|CACHE|CONFIG", name)}
    assert {"HOME", "TMPDIR", "XDG_CACHE_HOME", "MPLCONFIGDIR", "NUMBA_CACHE_DIR"} <= folders.keys()
    assert [name for name, value in folders.items() if not re.match("/tmp(/|$)", value)] == []


def test_builder_gets_what_the_installation_needs_and_nothing_else():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    sent = {line[1:] for line in rules if line.startswith("!")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    requirements = project["tool"]["setuptools"]["dynamic"]["dependencies"]["file"]
    needed = {"pyproject.toml", "constraints.txt", project["project"]["readme"], *requirements}
    assert sent == needed | {*project["project"]["license-files"], "bundle", "configs", "models"}
    assert [name for name in sent - {"models"} if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(("with_weights", "left"), [("true", {"model.pt", "model.json"}), ("false", {"model.json"})])
def test_weights_are_in_the_image_when_asked_for(tmp_path, with_weights, left):
    """The Dockerfile's own line, in a folder with weights, and in a checkout without any."""
    line = re.search(r"^RUN (mkdir -p models .*?fi) \\$", DOCKERFILE.replace("\\\n    && if", "&& if"), re.M)[1]
    environment = {**os.environ, "WITH_WEIGHTS": with_weights}
    subprocess.run(["sh", "-ec", line], cwd=tmp_path, env=environment, check=True)
    for name in ("model.pt", "model.json"):
        (tmp_path / "models" / name).touch()
    subprocess.run(["sh", "-ec", line], cwd=tmp_path, env=environment, check=True)
    assert {path.name for path in (tmp_path / "models").iterdir()} == left


def test_hadolint():
    finished = subprocess.run([tool("hadolint"), str(K8S / "Dockerfile")], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout
