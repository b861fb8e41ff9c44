"""Two processes, started once; what they did is written down by each and judged here."""

import json
import math
import multiprocessing
import os
import pathlib
import signal
import socket

import pytest
import torch
from ignite.engine import Events
from training_fixtures import equal, make_workflow

from bundle.errors import BundleError, ExitCode, InterruptedRun, find_bundle_error
from bundle.training import distributed, start
from bundle.training.checkpoints import load_checkpoint

LENGTH = 3
CONFIGS = ("train.yaml", "multi_gpu.yaml")
SETTINGS = {"steps_per_epoch": LENGTH, "phase1_epochs": 1, "num_epochs": 2, "checkpoint_every": 2, "val_interval": 1}
STEPS = 3 * LENGTH  # three phases of one epoch
STOP = 5  # inside the second phase


def gradients(trainer):
    """What the trainer's gradients were in each step, by parameter group, before they are clipped."""
    seen = []

    def note(optimizer, args, kwargs):
        groups = trainer.restorer.groups()
        seen.append(
            {
                name: [p.grad.detach().clone() for p in parameters if p.grad is not None]
                for name, parameters in groups.items()
            }
        )

    trainer.clip_norm = math.inf
    trainer.optimizer.register_step_pre_hook(note)
    return seen


def run(scans, cache, output, *, stop=None, lose=None, **settings):
    """Train; the error that ended it, if one did, and what was seen."""
    workflow, trainer = make_workflow(scans, output, cache=cache, **{**SETTINGS, **settings})
    seen = {"gradients": gradients(trainer), "losses": [], "metrics": []}

    def note(engine):
        seen["losses"].append((engine.state.iteration, engine.state.output["loss"]))
        if engine.state.iteration == lose:
            os._exit(9)

    def ask(engine):
        if engine.state.iteration == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer.add_event_handler(Events.ITERATION_STARTED, ask)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, note)
    evaluator = workflow.parser.get_parsed_content("validate#evaluator")
    evaluator.add_event_handler(Events.EPOCH_COMPLETED, lambda e: seen["metrics"].append(dict(e.state.metrics)))
    try:
        workflow.run()
    except Exception as error:
        known = find_bundle_error(error)
        if known is None:
            raise
        seen["error"] = (type(known).__name__, str(known), int(known.exit_code))
    return seen


def child(rank, port, scans, cache, folder):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)
    many = {"configs": CONFIGS, "batch_size": 1}
    found = {}
    found["alone"] = run(scans, cache, folder / "alone").get("error")  # without multi_gpu.yaml
    found["whole"] = run(scans, cache, folder / "whole", **many)
    distributed.stop()
    found["threads left"] = [name for name in threads() if "gloo" in name]
    found["accumulated"] = run(scans, cache, folder / "accumulated", gradient_accumulation_steps=2, **many)
    found["stopped"] = run(scans, cache, folder / "stopped", stop=STOP if rank == 1 else None, **many)
    found["resumed"] = run(scans, cache, folder / "stopped", **many)
    found["means"] = distributed.mean([float(rank), 2.0])
    found["gathered"] = distributed.gathered(f"of {rank}")
    found["any"] = (distributed.any_of(rank == 1), distributed.any_of(False))
    found["main"] = distributed.from_main(lambda: f"by {distributed.rank()}")
    found["failed"] = failure(lambda: distributed.from_main(refuse))
    found["other data"] = failure(lambda: start.prepare_data(OtherData(rank)))
    torch.save(found, folder / f"seen_{rank}.pt")
    found["lost"] = run(scans, cache, folder / "lost", lose=4 if rank == 1 else None, **many)
    torch.save(found, folder / f"seen_{rank}.pt")


def threads():
    """Names of this process's threads."""
    return [path.read_text().strip() for path in pathlib.Path("/proc/self/task").glob("*/comm")]


def refuse():
    raise BundleError("only rank 0 knows", exit_code=ExitCode.IO)


def failure(action):
    try:
        action()
    except BundleError as error:
        return str(error), int(error.exit_code)
    return None


class OtherData:
    revision = ""

    def __init__(self, rank):
        case = type("C", (), {"key": f"series-{rank}"})
        part = type("P", (), {"case": case, "start": 0, "stop": 4})
        self.split = type("S", (), {"train": (part,), "validation": ()})


@pytest.fixture(scope="module")
def seen(scans, cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=child, args=(rank, port, scans, cache, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(400)
    assert [process.exitcode for process in processes] == [0, 9]
    found = [torch.load(folder / f"seen_{rank}.pt", weights_only=False) for rank in range(2)]
    return {"folder": folder, "ranks": found}


@pytest.fixture(scope="module")
def alone(scans, cache, tmp_path_factory):
    """One process with the same global batch."""
    return {
        1: run(scans, cache, tmp_path_factory.mktemp("one") / "run", batch_size=2),
        2: run(scans, cache, tmp_path_factory.mktemp("one") / "run", batch_size=2, gradient_accumulation_steps=2),
    }


def test_the_config_for_several_is_asked_for(seen):
    for rank in seen["ranks"]:
        _, text, code = rank["alone"]
        assert code == ExitCode.USER and "add configs/multi_gpu.yaml" in text


@pytest.mark.parametrize("run_name,accumulation", [("whole", 1), ("accumulated", 2)])
def test_gradients_are_those_of_one_process_with_the_same_global_batch(seen, alone, run_name, accumulation):
    """In every step of every phase, so also after each transition. Tolerance: 1e-3 of the group's gradient norm,
    as float32 sums in another order drift apart over the steps; without synchronisation they differ by half."""
    one = alone[accumulation]["gradients"]
    first, second = (rank[run_name]["gradients"] for rank in seen["ranks"])
    assert len(one) == len(first) == len(second) == 3 * math.ceil(LENGTH / accumulation)
    phases = [{"vae_encoder", "vae_decoder"}, {"unet"}, {"unet", "vae_encoder", "vae_decoder", "refiner"}]
    for step, (expected, a, b) in enumerate(zip(one, first, second, strict=True)):
        moving = {name for name, values in expected.items() if values}
        assert moving == phases[step // math.ceil(LENGTH / accumulation)]
        for name in moving:
            assert equal(a[name], b[name]), f"step {step}, {name}: the processes differ"
            flat, one_flat = (torch.cat([g.flatten() for g in values]) for values in (a[name], expected[name]))
            assert float((flat - one_flat).norm()) <= 1e-3 * float(one_flat.norm()), f"step {step}, {name}"


def test_losses_are_means_over_the_processes(seen, alone):
    for rank in seen["ranks"]:
        assert [i for i, _ in rank["whole"]["losses"]] == list(range(1, STEPS + 1))
        for (_, loss), (_, expected) in zip(rank["whole"]["losses"], alone[1]["losses"], strict=True):
            assert loss == pytest.approx(expected, rel=1e-4)


def test_validation_is_shared_without_repeats(seen, alone):
    """Two slabs, one for each; the means are those of one process with both."""
    for rank in seen["ranks"]:
        assert len(rank["whole"]["metrics"]) == 3
        for metrics, expected in zip(rank["whole"]["metrics"], alone[1]["metrics"], strict=True):
            assert metrics == pytest.approx(expected, rel=1e-4)
    assert seen["ranks"][0]["whole"]["metrics"] == seen["ranks"][1]["whole"]["metrics"]


def test_only_rank_0_writes(seen):
    folder = seen["folder"] / "whole"
    assert len(list((folder / "tensorboard").iterdir())) == 1
    steps = [line.split(",")[0] for line in (folder / "metrics.csv").read_text().splitlines()[1:]]
    assert sorted(set(map(int, steps))) == list(range(1, STEPS + 1))
    assert len(steps) == STEPS + 3  # a row for each step and each validation
    assert json.loads((folder / "run.json").read_text())["environment"]["processes"] == 2


def test_one_asked_to_stop_stops_both_at_the_same_step(seen):
    for rank in seen["ranks"]:
        name, text, code = rank["stopped"]["error"]
        assert (name, code) == (InterruptedRun.__name__, 75) and f"after iteration {STOP}" in text
        assert rank["stopped"]["losses"][-1][0] in (STOP, STOP - 1)


def test_resumed_it_is_the_same_to_the_bit(seen):
    final = [load_checkpoint(seen["folder"] / run / "checkpoints/checkpoint_final.pt") for run in ("whole", "stopped")]
    assert equal(*final)
    assert [i for i, _ in seen["ranks"][0]["resumed"]["losses"]] == list(range(STOP + 1, STEPS + 1))


def test_a_lost_process_ends_the_other_with_something_to_go_on_from(seen, scans, cache):
    name, text, code = seen["ranks"][0]["lost"]["error"]
    assert (name, code) == (InterruptedRun.__name__, 75) and "another process of this run was lost" in text
    assert "lost" not in seen["ranks"][1]


def test_another_number_of_processes_is_refused_unless_allowed(seen, alone, scans, cache):
    """One process goes on where two stood, in pieces of the same memory; it ends where one alone would have."""
    folder = seen["folder"] / "lost"
    before = run(scans, cache, folder, batch_size=1)
    assert "made with another number of processes: 2, this run has 1" in before["error"][1]
    after = run(scans, cache, folder, batch_size=1, allow_world_size_change=True)
    # Process 1 died in step 4: process 0 saved that step, or only the end of the first epoch (step 3).
    first = after["losses"][0][0]
    assert first in (4, 5)
    assert [i for i, _ in after["losses"]] == list(range(first, STEPS + 1))

    final = load_checkpoint(folder / "checkpoints/checkpoint_final.pt")
    expected = load_checkpoint(seen["folder"] / "whole/checkpoints/checkpoint_final.pt")
    assert final["meta"]["world_size"] == 2
    for name, value in expected["network"].items():
        assert torch.allclose(final["network"][name].float(), value.float(), rtol=1e-2, atol=1e-4), name


def test_no_thread_of_the_process_group_is_left(seen):
    """One that lets go of a tensor while the interpreter ends would abort the process."""
    assert [found["threads left"] for found in seen["ranks"]] == [[], []]


def test_small_things(seen):
    for rank, found in enumerate(seen["ranks"]):
        assert found["means"] == [0.5, 2.0] and found["gathered"] == ["of 0", "of 1"]
        assert found["any"] == (True, False) and found["main"] == "by 0"
        assert found["failed"] == ("only rank 0 knows", 74)
        assert "process 1 has other data than process 0" in found["other data"][0], rank


def test_alone_nothing_is_exchanged():
    assert distributed.world_size() == 1 and distributed.rank() == 0
    assert distributed.mean([1.5]) == [1.5] and distributed.gathered(3) == [3] and distributed.any_of(True)
    assert distributed.from_main(lambda: 5) == 5
    module = torch.nn.Linear(1, 1)
    assert distributed.wrap(module) is module
    with distributed.synchronised_later(module):
        pass
    with pytest.raises(BundleError, match="backend 'mpi' is unknown"):
        distributed.start("mpi")


@pytest.mark.parametrize(("gpus", "rank"), [(0, 0), (2, 2)])
def test_nccl_without_a_gpu_is_the_users_to_change(monkeypatch, gpus, rank):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    with pytest.raises(BundleError, match=f"torch finds {gpus} GPUs here") as caught:
        distributed.start("nccl")
    assert caught.value.exit_code == ExitCode.USER
