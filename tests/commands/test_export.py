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
