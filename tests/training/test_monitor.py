import contextlib
import sqlite3

import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from training_fixtures import ROOT, TINY, make_workflow

from bundle.training.monitor import Monitor

LENGTH = 3


class Recorder:
    def __init__(self):
        self.calls = []

    def start(self, iteration):
        self.calls.append(("start", iteration))

    def step(self, iteration, values):
        self.calls.append(("step", iteration, values))

    def validation(self, iteration, metrics, pictures):
        self.calls.append(("validation", iteration, metrics, pictures))

    def close(self):
        self.calls.append(("close",))


@pytest.fixture(scope="module")
def told(scans, cache, tmp_path_factory):
    """What a run that was interrupted in step 2 and resumed told its sink and the terminal."""
    folder, sink, shown = tmp_path_factory.mktemp("monitor"), Recorder(), []

    class Shown:
        def __init__(self, description, *, total):
            shown.append([description, total, []])

        def update(self, *, note):
            shown[-1][2].append(note)

        def close(self):
            pass

    patch = pytest.MonkeyPatch()
    patch.setattr("bundle.training.monitor.Progress", Shown)
    settings = {"steps_per_epoch": LENGTH, "phase1_epochs": 1, "num_epochs": 1, "cache": cache}
    for stop in (2, None):
        workflow, trainer = make_workflow(scans, folder, **settings)
        handlers = workflow.parser.get_parsed_content("train#handlers")
        monitor = next(handler for handler in handlers if isinstance(handler, Monitor))
        monitor.sinks.append(sink)
        trainer.add_event_handler(
            Events.ITERATION_STARTED, lambda e, stop=stop: e.stop_asked.set() if e.state.iteration == stop else None
        )
        try:
            workflow.run()
        except Exception:
            assert stop is not None
    patch.undo()
    return sink.calls, shown


def test_every_step_is_told_once_and_after_a_resume_only_what_is_new(told):
    kinds = [(call[0], *call[1:2]) for call in told[0]]
    expected = [("start", 0), ("step", 1), ("step", 2), ("close",), ("start", 2), ("step", 3), ("validation", 3)]
    assert kinds == [*expected, ("step", 4), ("step", 5), ("step", 6), ("validation", 6), ("close",)]


def test_what_a_step_tells(told):
    values = next(call[2] for call in told[0] if call[0] == "step" and call[1] == 4)
    assert values["phase"] == "denoiser" and values["epoch"] == 1 and values["skipped_steps"] == 0
    assert values["lr_unet"] > 0 and values["lr_vae_encoder"] == 0
    assert 0 <= values["data_wait"] <= 1 and values["steps_per_second"] > 0
    assert values["loss"] > 0 and "unrefined" in values


def test_a_validation_tells_input_restoration_and_ceiling_with_pictures(told):
    _, _, metrics, pictures = next(call for call in told[0] if call[0] == "validation")
    assert {"val_psnr_1000", "val_psnr_1000_input", "val_psnr_1000_autoencoder"} <= metrics.keys()
    assert {name: tuple(picture.shape) for name, picture in pictures.items()} == {
        "input": (64, 64),
        "restored": (64, 64),
        "target": (64, 64),
    }
    assert all(torch.isfinite(picture).all() for picture in pictures.values())


def test_the_terminal_sees_phase_loss_rate_speed_wait_and_what_is_left(told):
    assert [(description, total) for description, total, _ in told[1]] == [
        ("epoch 1/2 (autoencoder)", 3),
        ("epoch 1/2 (autoencoder)", 1),
        ("epoch 2/2 (denoiser)", 3),
    ]
    note = told[1][2][2][-1]
    assert all(part in note for part in ("loss 0.", "lr ", "steps/s", "data wait", "whole run 0 min left"))


def test_mlflow_by_monais_own_switch(scans, cache, tmp_path):
    """`--tracking mlflow`: a local SQLite store below output_dir, every loss term in every step."""
    pytest.importorskip("sqlalchemy")
    pytest.importorskip("mlflow")
    settings = {**TINY, "num_epochs": 1, "phase1_epochs": 1, "steps_per_epoch": 2, "save_execute_config": False}
    workflow = ConfigWorkflow(
        config_file=str(ROOT / "configs" / "train.yaml"),
        meta_file=str(ROOT / "configs" / "metadata.json"),
        logging_file=False,
        run_id="training",
        tracking="mlflow",
        dataset_dir=str(scans),
        output_dir=str(tmp_path),
        **{**settings, "training_data#cache_dir": str(cache)},
    )
    workflow.initialize()
    workflow.run()
    with contextlib.closing(sqlite3.connect(tmp_path / "mlruns.db")) as store:
        counts = dict(store.execute("select key, count(*) from metrics group by key").fetchall())
        told = "".join(map(str, store.execute("select value from params").fetchall()))
    assert counts["train_loss"] == 4 and counts["train_unrefined"] == 2
    assert str(scans) not in told
