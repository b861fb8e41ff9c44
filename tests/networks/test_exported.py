import json

import pytest
import torch

from bundle.errors import BundleError
from bundle.networks.export import MANIFEST, SCHEMA, export_parts
from bundle.networks.exported import OnnxPart, largest_change_hu, largest_difference_hu, with_exported
from bundle.networks.presets import build_restorer

pytest.importorskip("onnxruntime")
SIZES = {"multiple": 8, "latent_channels": 16, "factor": 4}


def manifest(folder, **changes):
    content = {"schema": SCHEMA, "formats": ["onnx"], "weights_sha256": "a", "sha256": {}, **SIZES, **changes}
    folder.mkdir()
    (folder / MANIFEST).write_text(json.dumps(content))
    return folder


def test_without_a_folder_the_network_itself():
    net = build_restorer("tiny")
    assert with_exported(net, None) is net


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights_sha256": "b"}, "other weights"),
        ({"latent_channels": 4}, "another network"),
        ({"formats": ["torch"]}, "no ONNX export"),
        ({"schema": 0}, "no ONNX export"),
        ({"sha256": {"encoder.onnx": "0"}}, "'encoder.onnx' in exported_dir is missing or damaged"),
    ],
)
def test_an_export_of_something_else_is_refused(changes, message, tmp_path):
    with pytest.raises(BundleError, match=message):
        with_exported(build_restorer("tiny"), manifest(tmp_path / "export", **changes), weights_digest="a")


def test_no_export(tmp_path):
    with pytest.raises(BundleError, match="holds no export"):
        with_exported(build_restorer("tiny"), tmp_path)


def test_a_network_is_not_given_what_it_was_exported_without():
    class Session:
        def run(self, _, given):
            return [2 * given["z_t"]]

    part = OnnxPart.__new__(OnnxPart)
    torch.nn.Module.__init__(part)
    part.session, part.names = Session(), ["z_t"]
    assert torch.equal(part(torch.ones(2), torch.zeros(3)), torch.full((2,), 2.0))


def test_the_change_is_in_hu(randomise):
    assert largest_change_hu(build_restorer("tiny")) < 0.1  # a fresh one restores its input
    assert largest_change_hu(randomise(build_restorer("tiny"))) > 1


@pytest.mark.full
def test_onnx_runtime_equals_pytorch_and_leaves_the_original_alone(randomise, tmp_path):
    pytest.importorskip("onnxscript")
    net = randomise(build_restorer("tiny"))
    before = dict(net._modules)
    export_parts(net, tmp_path / "out", formats=["onnx"], about={"weights_sha256": "a"})
    engine = with_exported(net, tmp_path / "out", weights_digest="a")
    assert largest_difference_hu(net, engine) < 0.01
    assert largest_difference_hu(net, randomise(build_restorer("tiny"), seed=1)) > 1  # the measure can fail
    assert net._modules == before and list(engine.parameters()) == []
    assert engine.multiple == net.multiple


def test_another_provider_is_asked_for_by_name(monkeypatch, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    asked = []

    class Session:
        def __init__(self, path, options, providers):
            asked.append(providers)

        def get_inputs(self):
            return []

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)  # no TensorRT can be had here
    offered = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: offered)
    OnnxPart(tmp_path / "a.onnx")
    OnnxPart(tmp_path / "a.onnx", device="cuda", provider="TensorrtExecutionProvider")
    OnnxPart(tmp_path / "a.onnx", provider="CPUExecutionProvider")
    assert asked == [["CPUExecutionProvider"], offered[:2], ["CPUExecutionProvider"]]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BundleError, match=r"no TensorrtExecutionProvider \(exported_provider can be CPUExec"):
        OnnxPart(tmp_path / "a.onnx", provider="TensorrtExecutionProvider")
    with pytest.raises(BundleError, match=r"no CUDAExecutionProvider \(install onnxruntime-gpu"):
        OnnxPart(tmp_path / "a.onnx", device="cuda")
