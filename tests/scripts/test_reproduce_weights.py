"""The recipe of the shipped weights. Hours of training are left out: what it would run is written down and checked."""

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from tiny_workflows import ROOT

from bundle.networks.presets import build_restorer
from bundle.networks.weights import load_weights

SCRIPT = ROOT / "scripts" / "reproduce_weights.sh"
FORMER = "e7de06d"
# Writes down what it was asked to do; code on its standard input is run, copies are made.
PYTHON = """#!{python}
import json, pathlib, shutil, subprocess, sys
arguments = sys.argv[1:]
if arguments[0] == "-":
    sys.exit(subprocess.run([{python!r}, *arguments]).returncode)
with open({log!r}, "a") as log:
    log.write(json.dumps(arguments) + "\\n")
"""


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """What the recipe asks for, in order, and its folder."""
    folder = tmp_path_factory.mktemp("recipe")
    known = ["git", "-C", str(ROOT), "cat-file", "-e", f"{FORMER}:models/model.pt"]
    if subprocess.run(known, capture_output=True).returncode:
        pytest.skip("no history here")
    (folder / "bin").mkdir()
    python, log = folder / "bin" / "python", folder / "log"
    python.write_text(PYTHON.format(python=sys.executable, log=str(log)))
    python.chmod(0o755)
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["sh", SCRIPT, "CT", folder / "runs"], cwd=ROOT, env={**os.environ, "PATH": path}, check=True)
    return [json.loads(line) for line in log.read_text().splitlines()], folder / "runs"


def test_each_training_goes_on_from_the_one_before_and_the_last_is_packed_and_described(asked):
    commands, runs = asked
    kinds = [command[0] if command[0] != "-m" else command[3] for command in commands]
    packs, describes = "scripts/pack_weights.py", "scripts/describe_weights.py"
    assert kinds == ["scripts/manifest.py", *["training", packs] * 3, describes]
    trainings = [dict(zip(c[4::2], c[5::2], strict=True)) for c in commands if c[0] == "-m"]
    packed = [command[1:] for command in commands if command[0] == packs]
    starts = [f"{runs}/start.pt", *(target for _, target in packed)]
    assert [training["--weights_file"] for training in trainings] == starts[:-1] and starts[-1] == "models/model.pt"
    for training, (source, _) in zip(trainings, packed, strict=True):
        assert source == f"{training['--output_dir']}/model.pt"


def test_every_option_is_a_key_of_the_configs(asked):
    keys = {"config_file"}
    for name in ("train", "quick", "held_out"):
        keys |= set(yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text()))
    for command in asked[0]:
        if command[0] == "-m":
            assert {option.removeprefix("--").split("#")[0] for option in command[4::2]} <= keys


def test_the_start_is_the_former_denoiser_and_nothing_else(asked):
    network, state = build_restorer("small"), torch.load(asked[1] / "start.pt", weights_only=True)
    assert state and not [name for name in state if name.startswith("refiner.")]
    denoiser = {name for name in network.state_dict() if name.startswith("denoiser.")}
    assert denoiser <= set(state)
    load_weights(network, ROOT / "models" / "model.pt")
    assert all(state[name].shape == network.state_dict()[name].shape for name in denoiser)
