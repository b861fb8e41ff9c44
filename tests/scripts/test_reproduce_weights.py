"""The recipe of the shipped weights. Hours of training are left out: what it would run is written down and checked."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tiny_workflows import ROOT

from bundle.networks.presets import build_restorer
from bundle.networks.weights import load_weights

SCRIPT = ROOT / "scripts" / "reproduce_weights.sh"
FORMER = ("fc5a682", "7335d40", "aaba83b", "e7de06d")  # commits whose code trained version 0.1.0
# Writes down what it was asked to do and where; code on its standard input is run, a training leaves weights of 0.1.0.
PYTHON = """#!{python}
import json, os, pathlib, subprocess, sys
arguments = sys.argv[1:]
if arguments[0] == "-":
    sys.exit(subprocess.run([{python!r}, *arguments]).returncode)
with open({log!r}, "a") as log:
    log.write(json.dumps([os.getcwd(), arguments]) + "\\n")
if "--output_dir" in arguments:
    run = pathlib.Path(arguments[arguments.index("--output_dir") + 1])
    run.mkdir()
    os.link({weights!r}, run / "model.pt")
"""


def git(*arguments):
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True)


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """What the recipe asks for, in order, each with the folder it runs in; and the folder of the runs."""
    folder = tmp_path_factory.mktemp("recipe")
    if any(git("cat-file", "-e", f"{commit}:configs/train.yaml").returncode for commit in FORMER):
        pytest.skip("no history here")
    (folder / "bin").mkdir()
    (folder / "ct").mkdir()
    weights = folder / "former.pt"
    weights.write_bytes(git("show", f"{FORMER[-1]}:models/model.pt").stdout)
    python, log = folder / "bin" / "python", folder / "log"
    python.write_text(PYTHON.format(python=sys.executable, log=str(log), weights=str(weights)))
    python.chmod(0o755)
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    recipe = ["sh", SCRIPT, folder / "ct", folder / "runs"]
    subprocess.run(recipe, cwd=ROOT, env={**os.environ, "PATH": path}, check=True)
    return [(Path(where), asked) for where, asked in map(json.loads, log.read_text().splitlines())], folder / "runs"


def options(command):
    return dict(zip(command[4::2], command[5::2], strict=True))


def test_each_training_goes_on_from_the_one_before_and_the_last_is_packed_and_described(asked):
    commands, runs = asked
    kinds = [command[0] if command[0] != "-m" else command[3] for _, command in commands]
    packs, describes = "scripts/pack_weights.py", "scripts/describe_weights.py"
    former = [*["training"] * 3, "scripts/widen_refiner.py", "training"]
    assert kinds == ["scripts/manifest.py", *former, *["training", packs] * 3, describes]
    made = None
    for _, command in commands[1:-1]:
        if command[0] == "-m":
            start, target = options(command).get("--weights_file"), f"{options(command)['--output_dir']}/model.pt"
        else:
            start, target = command[1:]
        # The denoiser alone is taken out of the last weights of version 0.1.0.
        assert start == (f"{runs}/start.pt" if made == f"{runs}/former_4/model.pt" else made)
        made = target
    assert made == "models/model.pt"


def test_former_trainings_run_with_the_code_of_their_commits(asked):
    commands, runs = asked
    wheres = [where for where, command in commands if command[0] in ("-m", "scripts/widen_refiner.py")]
    code = [runs / "code" / commit for commit in (*FORMER[:3], FORMER[3], FORMER[3])]
    assert wheres == [*code, *[ROOT] * 3]
    for folder, commit in zip(code, (*FORMER, FORMER[3]), strict=True):
        assert (folder / "configs" / "train.yaml").read_bytes() == git("show", f"{commit}:configs/train.yaml").stdout


def test_every_option_is_a_key_of_the_configs(asked):
    for where, command in asked[0]:
        if command[0] == "-m":
            files = re.findall(r"configs/\w+\.yaml", options(command)["--config_file"])
            keys = {"config_file"}.union(*(yaml.safe_load((where / file).read_text()) for file in files))
            assert {option.removeprefix("--").split("#")[0] for option in options(command)} <= keys


def test_the_start_is_the_former_denoiser_and_nothing_else(asked):
    network, state = build_restorer("small"), torch.load(asked[1] / "start.pt", weights_only=True)
    assert state and not [name for name in state if name.startswith("refiner.")]
    denoiser = {name for name in network.state_dict() if name.startswith("denoiser.")}
    assert denoiser <= set(state)
    load_weights(network, ROOT / "models" / "model.pt")
    assert all(state[name].shape == network.state_dict()[name].shape for name in denoiser)
