import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from training_fixtures import ROOT, TINY, write_phantoms

from bundle.commands.launch import launch
from bundle.errors import BundleError


@pytest.fixture
def torchrun(tmp_path):
    """Stands for torchrun: leaves the notes of two workers as they would, waits when told to, and ends with 0 or 1."""

    def make(codes, *, wait=False, processes=2):
        script = tmp_path / "torchrun.py"
        script.write_text(
            textwrap.dedent(f"""
            import json, os, signal, sys, time
            open({str(tmp_path / "arguments")!r}, "w").write("\\n".join(sys.argv[1:]))
            if {wait}:
                stop = []
                signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
                open({str(tmp_path / "ready")!r}, "w").close()
                while not stop:
                    time.sleep(0.01)
            for name, code in {codes!r}.items():
                note = {{"code": code, "line": f"error: {{code}} of {{name}}", "processes": {processes}}}
                with open(os.path.join(os.environ["CT_ENHANCE_EXIT_CODES"], name), "w") as file:
                    json.dump(note, file)
            print("=" * 60, file=sys.stderr)
            last = [c for n, c in {codes!r}.items() if n[0] == max(m[0] for m in {codes!r})]
            sys.exit(0 if last and all(c in (0, 3) for c in last) else 1)
            """)
        )
        return [sys.executable, str(script)]

    return make


LOST = "error: a process of this run was lost (out of memory?); run the same command again"


@pytest.mark.parametrize(
    "codes,expected,last_line",
    [
        ({"0.0": 0, "0.1": 0}, 0, "=" * 60),
        ({"0.0": 3, "0.1": 0}, 3, "=" * 60),
        ({"0.0": 75, "0.1": 75}, 75, "error: 75 of 0.0"),
        ({"0.0": 75, "0.1": 2}, 2, "error: 2 of 0.1"),
        ({"0.0": 74, "0.1": 70}, 74, "error: 74 of 0.0"),
        ({"0.0": 70}, 70, "error: 70 of 0.0"),
        ({"0.1": 75}, 70, LOST),  # the other was killed
        ({}, 70, LOST),
        ({"0.0": 70, "1.0": 75, "1.1": 75}, 75, "error: 75 of 1.0"),
        ({"0.0": 75, "0.1": 75, "1.1": 75}, 70, LOST),
        ({"0.0": 70, "1.0": 0, "1.1": 0}, 0, "=" * 60),
    ],
)
def test_the_most_telling_code_of_the_last_attempt_is_returned(torchrun, capfd, codes, expected, last_line):
    assert launch(["--nproc_per_node", "2", "run", "training"], torchrun=torchrun(codes)) == expected
    assert capfd.readouterr().err.splitlines()[-1] == last_line


def test_arguments_are_passed_on(torchrun, tmp_path):
    launch(["--nproc_per_node", "2", "run", "training", "--seed", "3"], torchrun=torchrun({"0.0": 0}))
    given = (tmp_path / "arguments").read_text().split("\n")
    assert given == ["--nproc_per_node", "2", "--standalone", "-m", "bundle", "run", "training", "--seed", "3"]


def test_an_elastic_start_allows_another_number_of_processes(torchrun, tmp_path):
    launch(["--nnodes=1:2", "--rdzv_endpoint", "a:1", "run", "training"], torchrun=torchrun({"0.0": 0}))
    given = (tmp_path / "arguments").read_text().split("\n")
    assert given[-2:] == ["--allow_world_size_change", "true"] and "--standalone" not in given


def test_without_a_command_it_says_what_is_missing():
    with pytest.raises(BundleError, match="launch needs a command"):
        launch(["--nproc_per_node", "2"])


@pytest.mark.parametrize("codes", [{"0.0": 75, "0.1": 75}, {"0.1": 75}, {}])
def test_sigterm_reaches_torchrun_and_75_comes_back(torchrun, tmp_path, codes):
    command = [*torchrun(codes, wait=True)]
    program = f"import sys; from bundle.commands.launch import launch; sys.exit(launch(['run'], torchrun={command!r}))"
    process = subprocess.Popen([sys.executable, "-c", program])
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75


LAUNCHED = ["-m", "bundle", "launch", "--nproc_per_node", "2"]


def children(process):
    """Pids of all processes below one."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            found.setdefault(int(status.read_text().rpartition(")")[2].split()[1]), []).append(int(status.parent.name))
    below, todo = [], [process]
    while todo:
        todo += (new := found.get(todo.pop(), []))
        below += new
    return below


def workers(pid):
    """The processes of the training itself, which end with torchrun's workers and not its agent."""
    return [
        child
        for child in children(pid)
        if b"torch.distributed.run" not in (line := Path(f"/proc/{child}/cmdline").read_bytes()) and b"training" in line
    ]


def steps(folder):
    table = folder / "metrics.csv"
    return [int(line.split(",")[0]) for line in table.read_text().splitlines()[1:]] if table.exists() else []


def wait_for_steps(process, folder, count):
    while len(steps(folder)) < count:
        assert process.poll() is None
        time.sleep(0.1)


@pytest.mark.full
def test_two_real_processes_are_stopped_go_on_and_survive_a_killed_worker(tmp_path):
    """SIGTERM: a checkpoint and 75. Killed -9: 70; or torchrun starts both again, and the run ends with 0."""
    scans = write_phantoms(tmp_path / "scans")
    configs = "['configs/train.yaml','configs/multi_gpu.yaml']"
    keys = {**TINY, "batch_size": 1, "num_epochs": 4, "steps_per_epoch": 6, "checkpoint_every": 2, "val_interval": 9}
    keys |= {"dataset_dir": scans, "output_dir": tmp_path / "run"}
    options = [part for key, value in keys.items() for part in (f"--{key}", str(value))]

    def start(*more):
        command = [sys.executable, *LAUNCHED, *more, "run", "training", "--config_file", configs, *options]
        return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})

    first = start()
    wait_for_steps(first, tmp_path / "run", 3)
    first.send_signal(signal.SIGTERM)
    assert first.wait(300) == 75
    stopped_at = max(steps(tmp_path / "run"))
    assert (tmp_path / "run" / "checkpoints" / f"checkpoint_step_{stopped_at}.pt.sha256").is_file()
    killed = start()
    wait_for_steps(killed, tmp_path / "run", stopped_at + 2)
    os.kill(workers(killed.pid)[-1], signal.SIGKILL)
    assert killed.wait(300) == 70
    second = start("--max_restarts", "1")
    wait_for_steps(second, tmp_path / "run", stopped_at + 4)
    os.kill(workers(second.pid)[-1], signal.SIGKILL)
    assert second.wait(600) == 0
    taken = [step for step in steps(tmp_path / "run") if step]
    assert sorted(set(taken)) == list(range(1, 31)) and (tmp_path / "run" / "model.pt").is_file()
    refused = subprocess.run(
        [sys.executable, *LAUNCHED, "run", "training", "--config_file", configs, "--lerning_rate", "1"],
        cwd=ROOT,
        check=False,
    )
    assert refused.returncode == 2
