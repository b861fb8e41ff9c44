"""Killed at random moments, a training ends bit for bit as if nothing had happened."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from training_fixtures import equal, train_in_child

from bundle.training import checkpoints
from bundle.training.checkpoints import load_checkpoint

STEPS = 36  # two epochs of stage 0, three of the denoiser, four of all together; four steps each
SETTINGS = {"autoencoder_epochs": 2, "phase1_epochs": 3, "num_epochs": 7, "steps_per_epoch": 4, "val_interval": 3}
SETTINGS |= {"checkpoint_every": 1, "keep_checkpoints": 2}
KILLS = 12  # of each parametrisation: 24 in all
IN_A_SAVE = ("before writing", "half written", "written", "renamed")


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def cut_off(place, number):
    """Die within the `number`-th save of this process, at one of its four stages."""
    left = [number]
    save, digest = torch.save, checkpoints.file_digest

    def saving(content, path, **options):
        left[0] -= 1
        if left[0] == 0 and place == "before writing":
            die()
        save(content, path, **options)
        if left[0] == 0 and place == "half written":
            Path(path).write_bytes(Path(path).read_bytes()[:1000])
            die()
        if left[0] == 0 and place == "written":
            die()

    def digesting(path):
        if left[0] == 0 and place == "renamed":
            die()  # the checkpoint has its name, but no checksum yet
        return digest(path)

    checkpoints.torch.save, checkpoints.file_digest = saving, digesting


def run(log, place, number, arguments):
    if place:
        cut_off(place, number)
    train_in_child(log, None, arguments)


def start(log, arguments, place=None, number=0):
    process = multiprocessing.get_context("fork").Process(target=run, args=(str(log), place, number, arguments))
    process.start()
    return process


def losses(log):
    """Loss of each step; a step that was taken twice has to give the same loss twice."""
    found = {}
    for line in log.read_text().splitlines():
        iteration, loss = line.split()
        assert found.setdefault(int(iteration), loss) == loss, f"iteration {iteration} was not repeated exactly"
    return found


def wait_for_a_step(process, log):
    size = log.stat().st_size if log.exists() else 0
    while process.is_alive() and (log.stat().st_size if log.exists() else 0) == size:
        time.sleep(0.005)


@pytest.mark.full
@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA's threads do not survive a fork")
@pytest.mark.parametrize(
    "workers,accumulation,schedule,seed", [(0, 1, "cosine", 1), (2, 2, "linear", 2)], ids=["plain", "workers"]
)
def test_killed_at_random_moments_the_result_is_the_same_to_the_bit(
    scans, cache, tmp_path, workers, accumulation, schedule, seed
):
    settings = {
        **SETTINGS,
        "dataset_dir": scans,
        "cache": cache,
        "num_workers": workers,
        "gradient_accumulation_steps": accumulation,
        "lr_schedule": schedule,
    }
    whole, killed = tmp_path / "whole.log", tmp_path / "killed.log"
    process = start(whole, {**settings, "output_dir": tmp_path / "whole"})
    process.join(600)
    assert process.exitcode == 0
    settings["output_dir"] = tmp_path / "killed"
    rng, kills = random.Random(seed), 0
    while kills < KILLS:
        place = IN_A_SAVE[kills // 3] if kills % 3 == 2 else None
        process = start(killed, settings, place, number=2)
        if place is None:
            wait_for_a_step(process, killed)
            time.sleep(rng.uniform(0, 0.3))  # somewhere in the next steps, their saves, the validation
            process.kill()
        process.join(600)
        assert process.exitcode == -signal.SIGKILL, "it ended before it was killed: more steps are needed"
        kills += 1
    process = start(killed, settings)
    process.join(600)
    assert process.exitcode == 0
    assert losses(killed) == losses(whole) and sorted(losses(whole)) == list(range(1, STEPS + 1))
    for name in ("final", "best", "epoch_8"):
        pair = [load_checkpoint(tmp_path / n / "checkpoints" / f"checkpoint_{name}.pt") for n in ("whole", "killed")]
        assert equal(*pair), name
    assert equal(*(torch.load(tmp_path / n / "model.pt", weights_only=True) for n in ("whole", "killed")))
    tables = [(tmp_path / n / "metrics.csv").read_text().splitlines() for n in ("whole", "killed")]
    steps = [[line.split(",")[0] for line in table if line.split(",")[3]] for table in tables]
    assert steps[0] == steps[1]  # no step lost, none twice
