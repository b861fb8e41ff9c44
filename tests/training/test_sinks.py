import csv
import json
import sys
import time
import types

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bundle.errors import BundleError
from bundle.training.sinks import COLUMNS, CsvSink, PictureSink, TensorBoardSink, make_sinks, read_rows

VALUES = {"epoch": 0, "phase": "denoiser", "loss": 0.25, "unrefined": 0.25, "lr_unet": 1.0e-4, "steps_per_second": 2.0}
METRICS = {"val_psnr_1000": 33.0, "val_psnr_1000_input": 30.0, "val_psnr_1000_autoencoder": 50.0}
PICTURES = {name: torch.full((8, 8), 40.0 + number) for number, name in enumerate(("input", "restored", "target"))}


def tell(sinks, steps, *, start=0):
    for sink in sinks:
        sink.start(start)
        for step in steps:
            sink.step(step, {**VALUES, "loss": 1 / step})
        sink.validation(steps[-1], METRICS, PICTURES)
        sink.close()


def test_metrics_csv_has_each_step_once_also_after_a_kill(tmp_path):
    sink = CsvSink(tmp_path / "metrics.csv")
    tell([sink], range(1, 6))
    with sink.path.open("a") as stream:
        stream.write("6,0,den")  # cut off by a kill
    tell([sink], range(4, 8), start=3)  # the last checkpoint was of step 3
    rows = read_rows(sink.path)
    assert [int(row["step"]) for row in rows if row["loss"]] == list(range(1, 8))
    assert tuple(rows[0]) == COLUMNS and float(rows[2]["loss"]) == 1 / 3 and rows[0]["phase"] == "denoiser"
    assert [row["val_psnr_1000_autoencoder"] for row in rows if not row["loss"]] == ["50.0"]


def test_the_cpu_time_goes_on_after_a_kill(tmp_path):
    sink = CsvSink(tmp_path / "metrics.csv")
    tell([sink], range(1, 6))
    rows = [{**row, "process_seconds": str(100.0 * int(row["step"]))} for row in read_rows(sink.path)]
    with sink.path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    later = CsvSink(sink.path)
    began = time.process_time()
    tell([later], range(4, 6), start=3)
    taken = time.process_time() - began
    seconds = [float(row["process_seconds"]) for row in read_rows(sink.path)]
    assert seconds[:3] == [100.0, 200.0, 300.0] and all(300 <= value <= 300.05 + taken for value in seconds[3:])
    assert seconds == sorted(seconds)


def test_the_cpu_time_of_a_run_that_an_older_version_began_is_left_out(tmp_path):
    columns = [name for name in COLUMNS if name != "process_seconds"]
    with (tmp_path / "metrics.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerow({"step": 1, "loss": 1.0})
    sink = CsvSink(tmp_path / "metrics.csv")
    tell([sink], [2], start=1)
    assert [row["process_seconds"] for row in read_rows(sink.path)] == ["", "", ""]


def test_another_run_in_the_folder_begins_another_table(tmp_path):
    sink = CsvSink(tmp_path / "metrics.csv")
    tell([sink], range(1, 4))
    tell([sink], range(1, 3))
    assert [int(row["step"]) for row in read_rows(sink.path) if row["loss"]] == [1, 2]


def test_the_picture_is_drawn(tmp_path):
    from PIL import Image

    sinks = [CsvSink(tmp_path / "metrics.csv"), PictureSink(tmp_path / "metrics.csv", tmp_path / "progress.png")]
    tell(sinks, range(1, 6))
    assert Image.open(tmp_path / "progress.png").size == (900, 800)


def test_tensorboard_has_rates_by_group_and_slices_in_two_windows(tmp_path):
    tell([TensorBoardSink(tmp_path)], range(1, 4))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.value for event in events.Scalars("learning_rate/unet")] == pytest.approx([1.0e-4] * 3)
    assert {"training/loss", "running/steps_per_second", "validation/val_psnr_1000_autoencoder"} <= set(
        events.Tags()["scalars"]
    )
    assert set(events.Tags()["images"]) == {f"input_restored_target/{name}" for name in ("lung", "soft_tissue")}


def test_tensorboard_forgets_what_a_killed_run_told(tmp_path):
    tell([TensorBoardSink(tmp_path)], range(1, 6))
    tell([TensorBoardSink(tmp_path)], range(4, 7), start=3)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("training/loss")] == [1, 2, 3, 4, 5, 6]


def test_no_pictures_where_they_are_not_wanted(tmp_path):
    tell(make_sinks(tmp_path, pictures=False), range(1, 3))
    assert not (tmp_path / "progress.png").exists()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["images"] == []


def test_weights_and_biases_is_optional_and_named_when_missing(tmp_path, monkeypatch):
    with pytest.raises(BundleError, match="wandb 'on' is unknown"):
        make_sinks(tmp_path, wandb="on")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(BundleError, match=r"wandb is not installed \(pip install 'ct-enhance\[wandb\]'"):
        make_sinks(tmp_path, tensorboard=False, wandb="offline")[-1].start(0)


def test_weights_and_biases_gets_numbers_only(tmp_path, monkeypatch):
    seen = []
    run = types.SimpleNamespace(log=lambda v, step: seen.append((step, v)), finish=lambda: seen.append("end"))
    fake = types.SimpleNamespace(init=lambda **options: seen.append(options) or run, Settings=lambda **options: options)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    tell([make_sinks(tmp_path, tensorboard=False, wandb="offline", settings={"seed": 1})[-1]], range(1, 3))
    assert seen[0]["mode"] == "offline" and seen[0]["config"] == {"seed": 1} and seen[-1] == "end"
    assert seen[1][0] == 1 and "phase" not in seen[1][1]


def test_weights_and_biases_offline(tmp_path):
    pytest.importorskip("wandb")
    tell([make_sinks(tmp_path, tensorboard=False, wandb="offline", settings={"seed": 1})[-1]], range(1, 3))
    kept = next((tmp_path / "wandb").glob("offline-run-*"))
    assert list(kept.glob("run-*.wandb")) and not json.dumps([p.name for p in kept.iterdir()]).count("host")
