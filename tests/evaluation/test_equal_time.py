"""A baseline learns within its time, is stopped, and goes on as if it had not been."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from torch.utils.data import Dataset
from training_fixtures import ROOT, TINY, write_phantoms

from bundle.errors import BundleError, ExitCode, InterruptedRun
from bundle.evaluation import networks
from bundle.evaluation.equal_time import EqualTimeTraining
from bundle.networks.precision import resolve_precision


class Patches(Dataset):
    """Noise on a ramp; an item is a function of its index. Calls `watch` with the index."""

    patch = (24, 24, 4)

    def __init__(self, watch=None, identity="a ramp"):
        self.source = SimpleNamespace(identity=identity)
        self.watch = watch or (lambda _: None)

    def __getitem__(self, position):
        index = position[1] if isinstance(position, tuple) else position
        self.watch(index)
        rng = np.random.default_rng(index)
        label = torch.linspace(-50, 50, 24)[None, :, None, None].expand(1, 24, 24, 4).float()
        noise = torch.from_numpy(rng.normal(0, 30, (1, 24, 24, 4)).astype(np.float32))
        return {"image": label + noise, "label": label}

    def __len__(self):
        return 2


class Clock:
    """A second passes with every look."""

    def __init__(self):
        self.now = 0

    def __call__(self):
        self.now += 1
        return self.now


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    small = {"unet3d": lambda: networks.ResidualUNet3d((4, 8, 8)), "redcnn": lambda: networks.RedCnn(2)}
    monkeypatch.setattr(networks, "NETWORKS", small)


def training(folder, name="unet3d", seconds=40, watch=None, identity="a ramp", **options):
    return EqualTimeTraining(
        name,
        dataset=Patches(watch, identity),
        validation=Patches(),
        folder=folder,
        seconds=seconds,
        batch_size=2,
        precision=resolve_precision("off", "cpu"),
        validate_every=10,
        **{"clock": Clock(), **options},
    )


def curve(folder, name="unet3d"):
    with (folder / f"{name}_curve.csv").open() as stream:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(stream)]


def test_it_learns_and_writes_weights_and_curve(tmp_path):
    training(tmp_path, seconds=60, learning_rate=1.0e-2).run()
    rows = curve(tmp_path)
    assert [row["seconds"] for row in rows] == [*range(10, 60, 10), 60]
    assert all(row["step"] == row["seconds"] for row in rows)
    assert rows[-1]["rmse_1000_hu"] < 0.7 * rows[-1]["input_rmse_1000_hu"]
    assert rows[-1]["psnr_1000"] == pytest.approx(20 * np.log10(2000 / rows[-1]["rmse_1000_hu"]), abs=0.2)
    state = torch.load(tmp_path / "unet3d.pt", weights_only=True)
    networks.build_baseline("unet3d").load_state_dict(state)


def test_stopped_and_resumed_is_to_the_bit_as_if_never_stopped(tmp_path):
    training(tmp_path / "whole").run()
    stopped = training(tmp_path / "parts", watch=lambda index: index == 34 and stopped.stop_asked.set())
    with pytest.raises(InterruptedRun) as raised:
        stopped.run()
    assert raised.value.exit_code == ExitCode.INTERRUPTED
    assert not (tmp_path / "parts" / "unet3d.pt").exists()
    training(tmp_path / "parts").run()
    whole, parts = (torch.load(tmp_path / name / "unet3d.pt", weights_only=True) for name in ("whole", "parts"))
    assert all(torch.equal(parts[key], whole[key]) for key in whole)
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")


def test_a_call_has_a_limit(tmp_path):
    with pytest.raises(InterruptedRun, match="stopped after"):
        training(tmp_path, call_seconds=1e-6).run()
    assert (tmp_path / "unet3d_checkpoint.pt").is_file()


def test_red_cnn_trains_too(tmp_path):
    training(tmp_path, "redcnn", seconds=3).run()
    assert (tmp_path / "redcnn.pt").is_file()


def test_other_settings_and_damaged_checkpoints_are_refused(tmp_path):
    training(tmp_path, seconds=2).run()
    with pytest.raises(BundleError, match=r"another seconds: 2\.0, this run has 3\.0"):
        training(tmp_path, seconds=3).run()
    with pytest.raises(BundleError, match="another training_data: a ramp, this run has a wave"):
        training(tmp_path, seconds=2, identity="a wave").run()
    (tmp_path / "unet3d_checkpoint.pt").write_bytes(b"x")
    with pytest.raises(BundleError, match="cannot be read"):
        training(tmp_path, seconds=2).run()
    with pytest.raises(BundleError, match="seconds must be above 0"):
        training(tmp_path, seconds=0)


def test_the_workflow_trains_on_what_ours_is_trained_on(tmp_path):
    folder = write_phantoms(tmp_path / "in")
    workflow = ConfigWorkflow(
        config_file=[str(ROOT / "configs" / name) for name in ("train.yaml", "baseline.yaml")],
        meta_file=str(ROOT / "configs" / "metadata.json"),
        logging_file=False,
        run_id="baseline",
        workflow_type="train",
        **{
            **TINY,
            "dataset_dir": str(folder),
            "output_dir": str(tmp_path / "out"),
            "network": "unet3d",
            "seconds": 0.5,
        },
    )
    workflow.initialize()
    workflow.run()
    assert {"unet3d.pt", "unet3d_curve.csv", "unet3d_checkpoint.pt"} <= {p.name for p in (tmp_path / "out").iterdir()}
    assert curve(tmp_path / "out")[-1]["input_rmse_1000_hu"] > 1
