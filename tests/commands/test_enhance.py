import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
from phantom_series import phantom_hu, write_phantom_series
from shaken_networks import shaken
from tiny_workflows import write_tiny_weights

from bundle.commands import enhance as module
from bundle.commands.enhance import enhance
from bundle.commands.main import ct_enhance, main
from bundle.configuration import bundle_root
from bundle.errors import BundleError
from bundle.overrides import MONAI_OPTIONS, load_config


@pytest.fixture
def started(monkeypatch):
    """The command lines that would be run."""
    lines = []
    monkeypatch.setattr(module, "run_workflow", lambda line, **_: lines.append(line) or 3)
    return lines


def test_runs_the_inference_config(started):
    assert ct_enhance(["in", "out", "--steps", "4"]) == 3
    assert main(["enhance", "in", "out"]) == 3
    line = started[0]
    assert line.positionals == ("inference",)
    assert line.options["dataset_dir"] == "in" and line.options["output_dir"] == "out" and line.options["steps"] == 4
    assert line.config_files[0].endswith("configs/inference.yaml")


def test_folders_stay_text(started):
    enhance(["2024", "1,2"])
    assert started[0].options["dataset_dir"] == "2024" and started[0].options["output_dir"] == "1,2"


def test_another_config_may_be_named(started):
    enhance(["in", "out", "--config_file", "mine.yaml"])
    assert started[0].config_files == ["mine.yaml"]


@pytest.mark.parametrize("arguments", [["in"], ["in", "--steps", "4"], ["--steps", "4"], ["in", "out", "more"]])
def test_wrong_arguments(arguments, started):
    with pytest.raises(BundleError):
        enhance(arguments)
    assert started == []


def test_switches_are_no_keys_of_the_config(started, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "set_quiet", lambda quiet: started.append(quiet))
    summary = {"settings": {}, "weights_sha256": "w", "software_version": "0", "failed": {"b": "why"}}
    summary["series"] = {"a": {"status": "done", "source": ["/SECRET/1.dcm"], "uid_mapping": {"1.2": "3.4"}}}
    summary["refused"] = [{"key": "c", "reason": "no CT", "where": "SECRET"}]
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert enhance(["in", str(tmp_path), "--quiet", "--json"]) == 3
    assert started[0] is True and not {"quiet", "json", "dry_run"} & set(started[1].options)
    told = capsys.readouterr().out
    assert json.loads(told)["series"] == {"a": {"status": "done"}} and "SECRET" not in told and "1.2" not in told


def test_the_summary_of_a_share_is_its_own(started, tmp_path, capsys):
    for name, said in (("summary", "stale"), ("summary_1_of_4", "own")):
        summary = {"settings": said, "weights_sha256": "", "software_version": "", "failed": {}, "series": {}}
        (tmp_path / f"{name}.json").write_text(json.dumps({**summary, "refused": []}))
    enhance(["in", str(tmp_path), "--json", "--shard", "1/4"])
    assert json.loads(capsys.readouterr().out)["settings"] == "own"


def test_nothing_but_json_is_on_stdout(tmp_path, capsys):
    logging.disable(logging.NOTSET)  # --quiet of a test before holds for the process
    write_phantom_series(tmp_path / "in", slices=3, size=32)
    weights = write_tiny_weights(tmp_path / "model.pt", part="refiner", scale=0.05)
    options = ["--preset", "tiny", "--weights_file", str(weights), "--device", "cpu", "--mixed_precision", "off"]
    assert enhance([str(tmp_path / "in"), str(tmp_path / "out"), "--json", *options]) == 0
    printed = capsys.readouterr()
    assert [one["status"] for one in json.loads(printed.out)["series"].values()] == ["done"]
    assert " bundle.restoration." in printed.err


def test_a_dry_run_refuses_what_the_run_would(tmp_path):
    with pytest.raises(BundleError, match="unknown option --stepps"):
        enhance([str(tmp_path), "out", "--stepps", "4", "--dry_run"])


@pytest.fixture
def restored(monkeypatch):
    """What a video was restored with."""
    from bundle.restoration import api, video

    calls = []
    monkeypatch.setattr(api, "load_restorer", lambda **options: lambda *_, **__: calls.append(options))
    monkeypatch.setattr(video, "restore_video", lambda *_, **named: calls.append(named) or "a preview")
    return calls


def test_a_video_takes_its_own_options(restored, capsys):
    options = ["--window", "[50,400]", "--video_spacing_mm", "[0.7,0.7,5]", "--frames_per_second", "5"]
    assert enhance(["in.mp4", "out.mp4", *options]) == 0
    assert restored == [{"window": (50.0, 400.0), "spacing_mm": (0.7, 0.7, 5.0), "frames_per_second": 5.0}]
    assert capsys.readouterr().out == "out.mp4 is a preview\n"
    enhance(["in.mp4", "out.mp4", "--json"])
    assert json.loads(capsys.readouterr().out) == {"output": "out.mp4", "loss": "a preview"}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--window", "50"], "window must be 2 numbers"),
        (["--window", "[50,0]"], "the last above 0"),
        (["--video_spacing_mm", "[1,1]"], "video_spacing_mm must be 3 numbers"),
        (["--frames_per_second", "fast"], "frames_per_second must be 1 number"),
        (["--threads", "-1"], "threads must be a whole number"),
        (["--dry_run"], "a video has no plan"),
        (["--report", "true"], "--report has no effect for a video"),
        (["--steps", "4", "--save_nifti"], "--save_nifti has no effect"),
        (["--shard", "0/2"], "--shard has no effect"),
        (["--config_file", "mine.yaml"], "--config_file has no effect"),
    ],
)
def test_a_videos_wrong_options_are_refused(restored, option, message):
    with pytest.raises(BundleError, match=message):
        enhance(["in.mp4", "out.mp4", *option])
    assert restored == []


def test_what_a_video_refuses_is_a_key_of_the_config():
    keys = load_config([Path(bundle_root()) / "configs" / "inference.yaml"])
    assert set(keys) | MONAI_OPTIONS > module._NOT_FOR_VIDEOS


def test_a_video_goes_through_the_network(tmp_path, capsys):
    pytest.importorskip("imageio_ffmpeg")
    from bundle.restoration.api import load_restorer
    from bundle.restoration.video import read_frames, to_frames, to_hu, write_mp4
    from bundle.training.handlers import save_weights

    window, spacing = (50.0, 400.0), (0.8, 0.8, 2.5)
    source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
    write_mp4(source, to_frames(phantom_hu(size=64, slices=6), window))
    save_weights(shaken(), tmp_path / "model.pt")
    options = {"preset": "tiny", "weights_file": str(tmp_path / "model.pt"), "device": "cpu", "mixed_precision": "off"}
    line = [part for key, value in options.items() for part in (f"--{key}", value)]
    line += ["--window", str(list(window)), "--video_spacing_mm", str(list(spacing))]
    assert main(["enhance", str(source), str(target), *line]) == 0
    assert capsys.readouterr().out.startswith("out.mp4 is a preview: grey levels stand for -150 to 250 HU")
    given = read_frames(source)
    restored = load_restorer(**options)(to_hu(given, window), np.diag([*spacing, 1.0])).restored_hu
    expected = to_frames(restored, window)
    assert np.abs(expected.astype(int) - given).mean() > 1, "the network changes something"
    write_mp4(tmp_path / "expected.mp4", expected)
    np.testing.assert_array_equal(read_frames(target), read_frames(tmp_path / "expected.mp4"))


def test_the_help_names_options_that_there_are_in_80_columns(capsys):
    assert ct_enhance(["--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    named = set(re.findall(r"--(\w+)", text)) - {"key"}
    known = set(load_config([Path(bundle_root()) / "configs" / "inference.yaml"])) | {*module._SWITCHES}
    assert {"sampler", "task", "shard", "strict_domain"} < named <= known | {"window", "frames_per_second"}
