import pytest

from bundle.commands.export import export
from bundle.errors import BundleError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "OUTPUT is required"),
        (["--formats", "onnx"], "OUTPUT is required"),
        (["out", "more"], "unexpected argument 'more'"),
        (["out", "--formats", "torch", "--presett", "tiny"], "unknown option --presett"),
    ],
)
def test_wrong_arguments(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match=message):
        export(arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.full
def test_says_the_difference(tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    from tiny_workflows import write_tiny_weights

    weights = write_tiny_weights(tmp_path / "model.pt", part="denoiser", scale=0.05)
    options = ["--preset", "tiny", "--weights_file", str(weights), "--device", "cpu"]
    assert export([str(tmp_path / "out"), "--formats", "onnx", *options]) == 0
    assert "largest difference ONNX Runtime - PyTorch" in capsys.readouterr().out


@pytest.mark.full
def test_the_design_of_full_exports_too(tmp_path, capsys, monkeypatch):
    """With its attention, norms, three windows and no context; narrow, because its size adds nothing but time."""
    pytest.importorskip("onnxruntime")
    import dataclasses

    import torch

    from bundle.networks.presets import PRESETS, build_restorer
    from bundle.training.handlers import save_weights

    widths = {"autoencoder_channels": (32, 32, 32, 32), "denoiser_channels": (32, 64, 64)}
    monkeypatch.setitem(PRESETS, "full", dataclasses.replace(PRESETS["full"], **widths))
    torch.manual_seed(0)
    save_weights(build_restorer("full"), tmp_path / "model.pt")
    options = ["--preset", "full", "--weights_file", str(tmp_path / "model.pt"), "--device", "cpu"]
    assert export([str(tmp_path / "out"), "--formats", "onnx", *options]) == 0
    assert "largest difference ONNX Runtime - PyTorch" in capsys.readouterr().out


@pytest.mark.full
def test_a_series_is_restored_through_an_export_as_through_pytorch(tmp_path):
    pytest.importorskip("onnxruntime")
    import json

    import numpy as np
    from phantom_series import write_phantom_series
    from shaken_networks import shaken

    from bundle.commands.main import main
    from bundle.dicom.index import read_volume
    from bundle.training.handlers import save_weights

    hu = write_phantom_series(tmp_path / "in", slices=12)
    save_weights(shaken(), tmp_path / "model.pt")
    options = ["--preset", "tiny", "--weights_file", str(tmp_path / "model.pt"), "--device", "cpu"]
    assert export([str(tmp_path / "export"), "--formats", "onnx", *options]) == 0
    options += ["--mixed_precision", "off"]
    results = {}
    for engine, more in {"torch": [], "onnx": ["--exported_dir", str(tmp_path / "export")]}.items():
        out = tmp_path / engine
        assert main(["enhance", str(tmp_path / "in"), str(out), *options, *more]) == 0
        assert json.loads((out / "summary.json").read_text())["settings"]["engine"] == engine
        results[engine] = read_volume(str(next(out.glob("*/dicom")))).array
    assert np.abs(results["torch"] - hu).max() > 10, "the network did something"
    np.testing.assert_allclose(results["onnx"], results["torch"], rtol=0, atol=1)
