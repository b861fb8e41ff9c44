import json
import logging

import pytest
from phantom_series import write_phantom_series
from tiny_workflows import write_tiny_weights

from bundle.commands import enhance as module
from bundle.commands.enhance import enhance
from bundle.commands.main import ct_enhance, main
from bundle.errors import BundleError


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
        (["--dry_run"], "a video has no plan"),
    ],
)
def test_a_videos_wrong_options_are_refused(restored, option, message):
    with pytest.raises(BundleError, match=message):
        enhance(["in.mp4", "out.mp4", *option])
    assert restored == []
