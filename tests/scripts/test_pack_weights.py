import pytest
import torch
from script_modules import load_script

from bundle.errors import BundleError
from bundle.networks.presets import build_restorer
from bundle.networks.weights import load_weights
from bundle.training.handlers import save_weights


@pytest.fixture(scope="module")
def script():
    return load_script("pack_weights")


def test_the_denoiser_is_rounded_and_nothing_else(script, tmp_path):
    torch.manual_seed(0)
    network = build_restorer("tiny")
    save_weights(network, tmp_path / "run.pt")
    digest = script.pack(tmp_path / "run.pt", tmp_path / "model.pt", preset="tiny")
    packed = build_restorer("tiny")
    assert load_weights(packed, tmp_path / "model.pt") == digest
    for key, value in network.state_dict().items():
        found = packed.state_dict()[key]
        assert found.dtype == value.dtype
        if key.startswith("denoiser."):
            assert torch.allclose(found, value, rtol=2**-10, atol=2**-24)
        else:
            assert torch.equal(found, value)
    assert (tmp_path / "model.pt").stat().st_size < (tmp_path / "run.pt").stat().st_size


def test_weights_of_another_preset_are_refused(script, tmp_path):
    save_weights(build_restorer("tiny"), tmp_path / "run.pt")
    with pytest.raises(BundleError, match="does not fit"):
        script.pack(tmp_path / "run.pt", tmp_path / "model.pt", preset="small")
    assert not (tmp_path / "model.pt").exists()
