"""The shipped weights for thin slices on a patient that they were not trained on: what they are shipped for."""

import numpy as np
import pytest
import torch
from training_fixtures import ROOT

from bundle.degrade.slabs import ThickSlices
from bundle.dicom.index import read_volume
from bundle.evaluation.interpolation import cubic
from bundle.metrics.image import psnr
from bundle.networks.presets import build_restorer
from bundle.networks.weights import load_weights
from bundle.restoration.data_consistency import DataConsistency
from bundle.restoration.inferer import RestorationInferer
from bundle.restoration.registry import weights_for

RIDER = ROOT.parent / "shared" / "data" / "ct" / "rider_pilot_0117"


@pytest.mark.full
@pytest.mark.skipif(not RIDER.is_dir(), reason="the real series are not here")
@pytest.mark.parametrize("times", [3, 5])
def test_thin_slices_are_1_db_better_than_a_cubic_splines(times):
    volume = read_volume(str(RIDER))
    hu, step_mm = volume.array[128:384, 128:384], volume.spacing_mm[2]
    slabs = ThickSlices(thickness_mm=times * step_mm)
    thick = slabs.apply(hu, step_mm=step_mm)
    network = build_restorer("small").eval()
    load_weights(network, weights_for("thin", ROOT / "models"))
    pieces = RestorationInferer(steps=1).pieces(
        torch.from_numpy(thick), network, spacing_mm=torch.tensor(volume.spacing_mm)
    )
    difference = torch.cat([piece.difference for piece in pieces], -1).numpy()
    consistency = DataConsistency.of_slabs(slabs, count=hu.shape[2], step_mm=step_mm)
    restored = thick + difference + consistency.change(difference, thick)

    def decibels(image):
        return psnr(np.clip(image, -1000, 1000), np.clip(hu, -1000, 1000), data_range=2000)

    assert decibels(restored) > decibels(cubic(thick, slabs, step_mm=step_mm)) + 1.0
