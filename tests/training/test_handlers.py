import json
import multiprocessing
import os
import resource
import shutil
import signal

import pytest
import torch
from ignite.engine import Events
from training_fixtures import equal, make_workflow

from bundle.errors import ExitCode, InterruptedRun, find_bundle_error, report
from bundle.files import file_digest
from bundle.networks.presets import build_restorer
from bundle.training import handlers
from bundle.training.checkpoints import load_checkpoint, newest_checkpoint

SHORT = {"phase1_epochs": 1, "num_epochs": 1, "steps_per_epoch": 4, "val_interval": 100}
STEPS = 8


@pytest.fixture(scope="module")
def settings(scans, cache):
    return {"dataset_dir": scans, "cache": cache, **SHORT}


@pytest.fixture(scope="module")
def done(settings, tmp_path_factory):
    """A run's folder; copied by those who change it."""
    folder = tmp_path_factory.mktemp("done") / "run"
    make_workflow(output_dir=folder, **{**settings, "val_interval": 1})[0].run()
    return folder


@pytest.fixture
def copied(done, tmp_path):
    return shutil.copytree(done, tmp_path / "run")


def final(folder):
    return load_checkpoint(folder / "checkpoints" / "checkpoint_final.pt")


def stop_at(trainer, iteration, event=Events.ITERATION_STARTED):
    def stop(engine):
        if engine.state.iteration == iteration:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer.add_event_handler(event, stop)


def refused(**settings):
    with pytest.raises(Exception) as caught:
        make_workflow(**settings)[0].run()
    error = find_bundle_error(caught.value)
    assert error is not None and error.exit_code == ExitCode.USER and "\n" not in str(error)
    return str(error)


# ---- what a checkpoint holds ------------------------------------------------------------------------------


def test_content_of_a_checkpoint(done):
    saved = final(done)
    assert set(saved) == {"format", "network", "ema", "optimizer", "scaler", "trainer", "meta"}
    counters = {"iteration": STEPS, "epoch_length": 4, "epochs_done": 2, "skipped_steps": 0, "skipped_total": 0}
    assert saved["trainer"] == counters
    expected = {"seed": 0, "epoch_length": 4, "batch_size": 2, "world_size": 1, "accumulation_steps": 1}
    assert saved["meta"].items() >= {**expected, "phase": "denoiser"}.items()
    assert saved["network"].keys() == saved["ema"].keys() == build_restorer("tiny").state_dict().keys()
    assert not equal(saved["network"], saved["ema"])


def test_names_count_epochs_from_0(done):
    assert (done / "checkpoints" / "checkpoint_epoch_0.pt").is_file()
    assert load_checkpoint(done / "checkpoints" / "checkpoint_epoch_1.pt")["trainer"]["iteration"] == STEPS


# ---- stopping and going on --------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulation,iteration,saved_at", [(1, 3, 3), (2, 5, 6), (1, 8, 8)])
def test_sigterm_saves_and_says_so_and_the_next_run_goes_on(settings, tmp_path, accumulation, iteration, saved_at):
    """An optimizer step that is half accumulated is finished first."""
    before = signal.getsignal(signal.SIGTERM)
    settings = {**settings, "gradient_accumulation_steps": accumulation}
    make_workflow(output_dir=tmp_path / "whole", **settings)[0].run()
    workflow, trainer = make_workflow(output_dir=tmp_path / "stopped", **settings)
    stop_at(trainer, iteration)
    with pytest.raises(Exception) as caught:
        workflow.run()
    error = find_bundle_error(caught.value)
    assert isinstance(error, InterruptedRun) and error.exit_code == 75
    assert f"stopped after iteration {saved_at}" in str(error)
    assert newest_checkpoint(tmp_path / "stopped" / "checkpoints").name == f"checkpoint_step_{saved_at}.pt"
    assert not (tmp_path / "stopped" / "model.pt").exists()
    assert signal.getsignal(signal.SIGTERM) is before  # the process is no longer deaf to it

    workflow, trainer = make_workflow(output_dir=tmp_path / "stopped", **settings)
    seen = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: seen.append(engine.state.iteration))
    workflow.run()
    assert seen == list(range(saved_at + 1, STEPS + 1))
    assert equal(final(tmp_path / "whole"), final(tmp_path / "stopped"))


def test_checkpoints_wait_for_the_end_of_an_optimizer_step(settings, tmp_path):
    """Gradients are not saved: a checkpoint inside an accumulated step would lose half of it."""
    make_workflow(output_dir=tmp_path, **{**settings, "gradient_accumulation_steps": 2, "checkpoint_every": 3})[0].run()
    steps = {path.name for path in (tmp_path / "checkpoints").glob("checkpoint_step_*.pt")}
    assert steps == {"checkpoint_step_4.pt", "checkpoint_step_6.pt"}


def test_a_finished_run_started_again_does_nothing(settings, copied):
    weights, before = file_digest(copied / "model.pt"), final(copied)
    workflow, trainer = make_workflow(output_dir=copied, **settings)
    seen = []
    trainer.add_event_handler(Events.ITERATION_STARTED, seen.append)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, seen.append)
    workflow.run()
    assert seen == []
    assert file_digest(copied / "model.pt") == weights and equal(final(copied), before)


def test_more_epochs_extend_a_finished_run(settings, copied):
    workflow, trainer = make_workflow(output_dir=copied, **{**settings, "num_epochs": 2})
    seen = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: seen.append(engine.state.iteration))
    workflow.run()
    assert seen == list(range(STEPS + 1, STEPS + 5)) and final(copied)["meta"]["phase"] == "joint"


def test_off_begins_anew_and_auto_then_follows_the_new_run(settings, copied):
    """The folder holds checkpoints of higher numbers, which must not win over those of the run begun anew."""
    workflow, trainer = make_workflow(output_dir=copied, **settings, resume="off", keep_checkpoints=1)
    stop_at(trainer, 2)
    with pytest.raises(Exception):  # noqa: B017
        workflow.run()
    assert newest_checkpoint(copied / "checkpoints").name == "checkpoint_step_2.pt"


def test_a_named_checkpoint_is_taken(settings, copied):
    path = copied / "checkpoints" / "checkpoint_epoch_0.pt"
    workflow, trainer = make_workflow(output_dir=copied, **settings, resume=str(path))
    seen = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: seen.append(engine.state.iteration))
    before = final(copied)
    workflow.run()
    assert seen == [5, 6, 7, 8] and equal(final(copied), before)


def test_a_damaged_newest_one_is_set_aside(settings, copied):
    before = final(copied)
    newest = copied / "checkpoints" / "checkpoint_epoch_1.pt"
    newest.write_bytes(newest.read_bytes()[:-1])
    workflow, trainer = make_workflow(output_dir=copied, **settings)
    seen = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: seen.append(engine.state.iteration))
    workflow.run()
    assert seen == [5, 6, 7, 8] and equal(final(copied), before)
    assert (copied / "checkpoints" / "checkpoint_epoch_1.damaged").is_file()


def test_an_epoch_whose_validation_was_cut_off_gets_it_after_the_resume(settings, tmp_path):
    """Stopped after the last step of epoch 0: the step's checkpoint is newer than any of the epoch's."""
    settings = {**settings, "val_interval": 1}
    make_workflow(output_dir=tmp_path / "whole", **settings)[0].run()
    workflow, trainer = make_workflow(output_dir=tmp_path / "stopped", **settings)
    stop_at(trainer, 4)
    with pytest.raises(Exception):  # noqa: B017
        workflow.run()
    folder = tmp_path / "stopped" / "checkpoints"
    assert {path.name for path in folder.glob("*.pt")} == {"checkpoint_step_4.pt"}
    workflow, _ = make_workflow(output_dir=tmp_path / "stopped", **settings)
    epochs = []
    evaluator = workflow.parser.get_parsed_content("validate#evaluator")
    evaluator.add_event_handler(Events.COMPLETED, lambda e: epochs.append(e.state.epoch))
    workflow.run()
    assert epochs == [1, 2]
    for name in ("epoch_0", "epoch_1", "best", "final"):
        assert equal(
            *(load_checkpoint(tmp_path / run / "checkpoints" / f"checkpoint_{name}.pt") for run in ("whole", "stopped"))
        ), name


def test_ctrl_c_saves_too_and_a_second_one_does_not_wait(settings, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    workflow, trainer = make_workflow(output_dir=tmp_path, **settings)
    trainer.add_event_handler(
        Events.ITERATION_STARTED, lambda e: os.kill(os.getpid(), signal.SIGINT) if e.state.iteration == 2 else None
    )
    with pytest.raises(Exception) as caught:
        workflow.run()
    assert "stopped after iteration 2" in str(find_bundle_error(caught.value))
    assert signal.getsignal(signal.SIGINT) is before
    trainer.stop_asked.set()
    with pytest.raises(KeyboardInterrupt):
        handlers._ask_to_stop(trainer, signal.SIGINT)


def test_stopped_during_a_validation_it_ends_with_the_epochs_checkpoint(settings, tmp_path):
    workflow, trainer = make_workflow(output_dir=tmp_path, **{**settings, "val_interval": 1})
    evaluator = workflow.parser.get_parsed_content("validate#evaluator")
    evaluator.add_event_handler(Events.ITERATION_STARTED(once=1), lambda _: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Exception) as caught:
        workflow.run()
    assert "stopped after epoch 0" in str(find_bundle_error(caught.value))
    assert trainer.state.iteration == 4


def write_until_full(folder, limit, settings):
    """Train in a process that may not write files larger than `limit`: what a full disk does to a save."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # write() then fails with EFBIG
    workflow, trainer = make_workflow(output_dir=folder, **settings)

    def fill(engine):
        if engine.state.iteration == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    trainer.add_event_handler(Events.ITERATION_STARTED, fill)
    try:
        workflow.run()
    except Exception as error:
        os._exit(report(error))


def test_a_disk_that_fills_up_during_a_save_leaves_the_checkpoint_before_and_ends_with_74(settings, tmp_path, capfd):
    process = multiprocessing.get_context("fork").Process(target=write_until_full, args=(tmp_path, 10**6, settings))
    process.start()
    process.join(300)
    assert process.exitcode == ExitCode.IO
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and "could not be written" in lines[0] and "make room" in lines[0]
    folder = tmp_path / "checkpoints"
    assert newest_checkpoint(folder).name == "checkpoint_epoch_0.pt" and not list(folder.glob(".*"))
    make_workflow(output_dir=tmp_path, **settings)[0].run()
    assert final(tmp_path)["trainer"]["iteration"] == STEPS


# ---- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change,message",
    [
        ({"seed": 1}, "another seed: 0, this run has 1"),
        ({"batch_size": 1}, "another batch_size: 2, this run has 1"),
        ({"gradient_accumulation_steps": 2}, "another gradient_accumulation_steps: 1, this run has 2"),
        ({"steps_per_epoch": 5}, "another steps per epoch (steps_per_epoch, "),
        ({"steps_per_epoch": 0}, "another steps per epoch (steps_per_epoch, or by the data"),
    ],
)
def test_another_run_is_refused_and_the_key_named(settings, done, change, message):
    assert message in refused(output_dir=done, **{**settings, **change})


def test_batch_size_is_named_also_where_the_epoch_follows_from_it(settings, scans, cache, tmp_path):
    settings = {**settings, "steps_per_epoch": 0, "autoencoder_epochs": 0}
    make_workflow(output_dir=tmp_path, **settings)[0].run()
    assert "another batch_size: 2, this run has 4" in refused(output_dir=tmp_path, **{**settings, "batch_size": 4})


def test_other_networks_are_refused(settings, done):
    path = done / "checkpoints" / "checkpoint_final.pt"
    saved = load_checkpoint(path)
    saved["network"].pop(next(iter(saved["network"])))
    other = done.parent / "other.pt"
    torch.save(saved, other)
    assert "'other.pt' is of other networks" in refused(output_dir=done, **settings, resume=str(other))


def test_a_file_that_is_no_checkpoint_is_refused(settings, done):
    assert "is not one of this bundle's" in refused(output_dir=done, **settings, resume=str(done / "model.pt"))
    missing = str(done / "checkpoint_step_9.pt")
    assert "checkpoint 'checkpoint_step_9.pt' does not exist" in refused(output_dir=done, **settings, resume=missing)


# ---- the best checkpoint ----------------------------------------------------------------------------------


def score(workflow, values):
    """Make validation give these values, one after the other."""
    evaluator = workflow.parser.get_parsed_content("validate#evaluator")
    values = iter(values)

    def run(epoch):
        value = next(values)
        state = evaluator.state
        if state.best_metric_epoch == -1 or value > state.best_metric:
            state.best_metric, state.best_metric_epoch = value, epoch

    evaluator.run = run


def best(folder):
    return load_checkpoint(folder / "checkpoints" / "checkpoint_best.pt")["trainer"]["iteration"]


def test_the_best_stays_the_best_over_a_resume(settings, tmp_path):
    settings = {**settings, "val_interval": 1, "num_epochs": 3}
    workflow, trainer = make_workflow(output_dir=tmp_path, **settings)
    score(workflow, [30.0, 40.0, 0.0])
    stop_at(trainer, 9)
    with pytest.raises(Exception):  # noqa: B017
        workflow.run()
    assert best(tmp_path) == 8
    workflow, _ = make_workflow(output_dir=tmp_path, **settings)
    score(workflow, [35.0, 41.0])
    seen = []
    workflow.parser.get_parsed_content("train#trainer").add_event_handler(
        Events.EPOCH_COMPLETED, lambda _: seen.append(best(tmp_path))
    )
    workflow.run()
    assert seen == [8, 16]
    kept = json.loads((tmp_path / "checkpoints" / "checkpoint_best.json").read_text())
    assert kept == {"metric": 41.0, "epoch": 3}


def test_who_goes_back_leaves_a_later_best_behind(settings, copied):
    (copied / "checkpoints" / "checkpoint_best.json").write_text('{"metric": 99.0, "epoch": 1}')
    first = str(copied / "checkpoints" / "checkpoint_epoch_0.pt")
    workflow, _ = make_workflow(output_dir=copied, **{**settings, "val_interval": 1}, resume=first)
    score(workflow, [20.0])
    workflow.run()
    assert best(copied) == 8
    assert json.loads((copied / "checkpoints" / "checkpoint_best.json").read_text())["metric"] == 20.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_without_a_finite_value_does_not_end_the_run(settings, tmp_path, value):
    workflow, _ = make_workflow(output_dir=tmp_path, **{**settings, "val_interval": 1})
    score(workflow, [value, value])
    workflow.run()
    assert best(tmp_path) == 4
    make_workflow(output_dir=tmp_path, **settings)[0].run()
