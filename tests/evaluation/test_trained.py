"""Trained baselines come from their weights, and a row without weights says so."""

import numpy as np
import pytest
import torch

from bundle.degrade.composition import THICK_SLICES
from bundle.degrade.slabs import ThickSlices
from bundle.errors import BundleError
from bundle.evaluation.methods import Problem
from bundle.evaluation.networks import ResidualUNet3d
from bundle.evaluation.trained import apply_network, trained_method
from bundle.networks.precision import resolve_precision
from bundle.training.handlers import save_weights

CPU = torch.device("cpu")
FULL = resolve_precision("off", "cpu")


def problem(hu):
    return Problem("key", hu, hu, (0.8, 0.8, 2.5))


def test_weights_are_used(tmp_path):
    torch.manual_seed(1)
    network = ResidualUNet3d().eval()
    with torch.no_grad():
        network.net.output_block.conv.conv.bias.fill_(0.1)  # 5 HU everywhere
    save_weights(network, tmp_path / "unet3d.pt")
    hu = np.random.default_rng(0).normal(0, 50, (33, 40, 20)).astype(np.float32)
    method = trained_method("unet3d", tmp_path / "unet3d.pt", precision=FULL, device=CPU)
    np.testing.assert_allclose(method.restore(problem(hu)), hu + 5, atol=0.01)


def test_thin_slices_are_brought_into_agreement_as_ours_are(tmp_path):
    save_weights(ResidualUNet3d().eval(), tmp_path / "unet3d.pt")
    how = {"thickness_mm": 3.0, "increment_mm": 3.0, "offset_mm": 1.0}
    slabs = ThickSlices(**how)
    target = np.random.default_rng(0).normal(0, 50, (24, 24, 18)).astype(np.float32)
    averages = slabs.slab_weights(18, 1.0)
    one = Problem("key", slabs.apply(target, step_mm=1.0), target, (0.8, 0.8, 1.0), [{"kind": THICK_SLICES, **how}])
    error = {}
    for kept in (False, True):
        method = trained_method("unet3d", tmp_path / "unet3d.pt", precision=FULL, device=CPU, data_consistency=kept)
        assert ("agree" in method.definition) == kept
        error[kept] = np.abs((method.restore(one) - target) @ averages.T).max()
    assert error[True] < 0.1 < 1 < error[False]


def test_long_volumes_go_through_in_windows():
    hu = np.random.default_rng(0).normal(0, 50, (24, 24, 40)).astype(np.float32)
    same = apply_network(torch.nn.Hardtanh(-1e6, 1e6), hu, precision=FULL, device=CPU)
    np.testing.assert_allclose(same, hu, atol=1e-3)


@pytest.mark.parametrize("named", [None, "absent.pt", "wrong.pt"])
def test_missing_or_foreign_weights_are_named_when_the_row_is_made(tmp_path, named):
    torch.save({"a": torch.zeros(2)}, tmp_path / "wrong.pt")
    method = trained_method("redcnn", named and tmp_path / named, precision=FULL, device=CPU)
    with pytest.raises(BundleError):
        method.restore(problem(np.zeros((16, 16, 2), np.float32)))
