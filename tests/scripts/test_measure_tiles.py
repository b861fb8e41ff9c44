"""What tiles cost: the script on a small volume; with the shipped weights, borders are below what storing rounds."""

import numpy as np
import pytest
import torch
from phantom_series import phantom_hu, write_phantom_series
from script_modules import load_script
from tiny_workflows import ROOT, write_tiny_weights

from bundle.dicom.index import read_volume
from bundle.networks.presets import build_restorer
from bundle.networks.weights import load_weights
from bundle.restoration.inferer import RestorationInferer
from bundle.restoration.region import touchable

script = load_script("measure_tiles")
CRLM = ROOT.parent / "shared" / "data" / "ct" / "crlm_1004"
ROUNDING_HU = 0.25  # mean absolute error of rounding to whole HU, as stored values are


def test_the_script_prints_a_row_for_each_tile_size(tmp_path, monkeypatch, capsys):
    write_phantom_series(tmp_path / "in", slices=10, size=64)
    weights = write_tiny_weights(tmp_path / "model.pt", part="refiner", scale=0.05)
    options = ["--dataset_dir", tmp_path / "in", "--preset", "tiny", "--weights_file", weights, "--slices", 10]
    monkeypatch.setattr("sys.argv", ["measure_tiles", *map(str, options)])
    monkeypatch.setattr(script, "TILES", [((64, 64, 6), 2), ((48, 64, 10), 2)])
    script.main()
    size, changed, distances, _, first, second = capsys.readouterr().out.splitlines()
    assert size.startswith("(64, 64, 10) voxels") and float(changed.split(" by ")[1].split()[0]) > 0
    assert len(distances.split(":")[1].split()) == 5
    computed, at_borders, elsewhere = map(float, first.split()[2:5])
    assert computed == 1.2 and 0 < elsewhere < at_borders
    assert second.startswith("48x64x10")


def test_figures_of_a_difference_that_is_known():
    hu = torch.from_numpy(phantom_hu(slices=12, size=64))
    body = touchable(hu.numpy())
    inferer = RestorationInferer(tile_size=(64, 64, 8), slice_overlap=4)
    (first, second) = inferer.spans(2, 0, 12, multiple=1)
    change = torch.randn(hu.shape, generator=torch.Generator().manual_seed(0))
    whole, tiled = hu + change, hu + change
    tiled[..., second.start + 1 : first.stop - 1] += 0.5  # the two slices where one fades into the other
    computed, at, elsewhere, shift, _ = script.figures(tiled, whole, hu, body, inferer)
    assert computed == 16 / 12 and at == pytest.approx(0.5, abs=1e-4) and elsewhere == pytest.approx(0, abs=1e-4)
    share = [body[..., 5:7].sum() / body[..., part].sum() for part in (slice(0, 8), slice(4, 12))]
    assert shift == pytest.approx(0.5 * max(share), rel=1e-3)


def test_the_distance_is_counted_from_the_cut():
    whole = torch.zeros(4, 4, 10)
    halves = torch.stack([torch.full((4, 4), float(min(abs(k - 4), abs(k - 5)))) for k in range(10)], dim=-1)
    assert script.by_distance(halves, whole, np.ones((4, 4, 10), bool)) == [0, 1, 2, 3, 4]


@pytest.mark.full
@pytest.mark.skipif(not CRLM.is_dir(), reason="no shared data")
@pytest.mark.parametrize("steps", [1, 4])
def test_borders_of_tiles_differ_less_than_storing_rounds_and_shift_nothing(steps):
    """On the shipped weights: in the tiles that studies are cut into, and by less than with half the overlap."""
    network = build_restorer("small").eval()
    load_weights(network, ROOT / "models" / "model.pt")
    volume = read_volume(str(CRLM))
    hu = torch.from_numpy(volume.array[128:320, 160:352].copy())
    body = touchable(volume.array)[128:320, 160:352]
    at = {}
    whole = script.restored(
        network, hu, volume.spacing_mm, RestorationInferer(tile_size=hu.shape, steps=steps, mixed_precision="off")
    )
    for overlap in (4, 8):
        inferer = RestorationInferer(steps=steps, slice_overlap=overlap, mixed_precision="off")
        tiled = script.restored(network, hu, volume.spacing_mm, inferer)
        _, at[overlap], _, shift, _ = script.figures(tiled, whole, hu, body, inferer)
        assert shift < 0.5
    assert at[8] < ROUNDING_HU and at[8] < at[4] / 2
