"""Former weights keep their function in today's refiner."""

import pytest
import torch
from script_modules import load_script

from bundle.errors import BundleError
from bundle.networks import refiner as module
from bundle.networks.presets import PRESETS
from bundle.networks.refiner import Refiner


@pytest.fixture(scope="module")
def script():
    return load_script("widen_refiner")


def inputs():
    generator = torch.Generator().manual_seed(1)
    base, restored = (0.3 * torch.randn(1, 1, 16, 24, 3, generator=generator) for _ in range(2))
    return base, restored, torch.full((1, 1, 1, 1, 3), 0.03)


def test_wider_computes_the_same(script, monkeypatch):
    torch.manual_seed(0)
    former = Refiner(script.FORMER_CHANNELS)
    torch.nn.init.normal_(former.net.output_block.conv.conv.weight)
    torch.nn.init.normal_(former.net.output_block.conv.conv.bias)
    wider = Refiner(PRESETS["small"].refiner_features)
    wider.load_state_dict(script.widen(former.state_dict()))
    with torch.no_grad():
        found = wider(*inputs())
        monkeypatch.setattr(module, "ANATOMY_SCALE", 1.0)
        expected = former(*inputs())
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_new_channels_have_something_to_learn_from(script):
    former = Refiner(script.FORMER_CHANNELS)
    torch.nn.init.normal_(former.net.output_block.conv.conv.weight)
    wider = Refiner(PRESETS["small"].refiner_features)
    wider.load_state_dict(script.widen(former.state_dict()))
    wider(*inputs()).square().sum().backward()
    assert wider.net.output_block.conv.conv.weight.grad[:, 12:].abs().max() > 0


def test_other_weights_are_refused(script):
    with pytest.raises(BundleError, match="not weights of the former refiner"):
        script.widen(Refiner(PRESETS["small"].refiner_features).state_dict())
    with pytest.raises(BundleError, match="not weights of the former refiner"):
        script.widen({})


def test_a_file_is_made_of_a_file(script, tmp_path, monkeypatch):
    state = {script.PREFIX + name: value for name, value in Refiner(script.FORMER_CHANNELS).state_dict().items()}
    torch.save(state | {"denoiser.weight": torch.ones(2)}, tmp_path / "old.pt")
    monkeypatch.setattr("sys.argv", ["widen_refiner.py", str(tmp_path / "old.pt"), str(tmp_path / "new.pt")])
    assert script.main() == 0
    made = torch.load(tmp_path / "new.pt", weights_only=True)
    assert made.keys() == state.keys() | {"denoiser.weight"} and made["denoiser.weight"].sum() == 2
    Refiner(PRESETS["small"].refiner_features).load_state_dict(
        {name.removeprefix(script.PREFIX): value for name, value in made.items() if name.startswith(script.PREFIX)}
    )
    monkeypatch.setattr("sys.argv", ["widen_refiner.py", str(tmp_path / "new.pt"), str(tmp_path / "twice.pt")])
    assert script.main() == 2 and not (tmp_path / "twice.pt").exists()
