"""What cutting costs: the script on a small volume; with the shipped weights, flowing slices have no seam at all."""

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
CT = ROOT.parent / "shared" / "data" / "ct"
RESOLUTION_HU = 2.0**-11  # of a change of 1 HU in half precision, in which a study's changes are kept
ROUNDING_HU = 0.25  # mean absolute error of rounding to whole HU, as stored values are


def test_the_script_prints_a_row_for_each_tile_size(tmp_path, monkeypatch, capsys):
    write_phantom_series(tmp_path / "in", slices=10, size=64)
    weights = write_tiny_weights(tmp_path / "model.pt", part="refiner", scale=0.05)
    options = [
        "--dataset_dir",
        tmp_path / "in",
        "--preset",
        "tiny",
        "--weights_file",
        weights,
        "--slices",
        10,
        "--size",
        64,
    ]
    monkeypatch.setattr("sys.argv", ["measure_tiles", *map(str, options)])
    monkeypatch.setattr(script, "TILES", [((64, 64, 6), 2), ((48, 64, 10), 2)])
    monkeypatch.setattr(script, "IN_PLANE", [])
    monkeypatch.setattr(script, "FLOWING", [3])
    script.main()
    size, changed, distances, _, flowing, first, second = capsys.readouterr().out.splitlines()
    assert size.startswith("(64, 64, 10) voxels") and float(changed.split(" by ")[1].split()[0]) > 0
    assert len(distances.split(":")[1].split()) == 5
    computed, at_borders, elsewhere = map(float, first.split()[2:5])
    assert computed == 1.2 and 0 < elsewhere < at_borders
    assert second.startswith("48x64x10")
    assert flowing.startswith("3 flowing")
    computed, *differences = map(float, flowing.split()[3:6])
    assert computed == 1.0 and max(differences) <= 1e-4 < elsewhere


def test_figures_of_a_difference_that_is_known():
    hu = torch.from_numpy(phantom_hu(slices=12, size=64))
    body = touchable(hu.numpy())
    inferer = RestorationInferer(tile_size=(64, 64, 8), slice_overlap=4)
    axes = [inferer.spans(axis, 0, size, multiple=1) for axis, size in enumerate(hu.shape)]
    (first, second) = axes[2]
    change = torch.randn(hu.shape, generator=torch.Generator().manual_seed(0))
    whole, tiled = hu + change, hu + change
    tiled[..., second.start + 1 : first.stop - 1] += 0.5  # the two slices where one fades into the other
    computed, at, elsewhere, shift, _ = script.figures(tiled, axes, whole, hu, body)
    assert computed == 16 / 12 and at == pytest.approx(0.5, abs=1e-4) and elsewhere == pytest.approx(0, abs=1e-4)
    share = [body[..., 5:7].sum() / body[..., part].sum() for part in (slice(0, 8), slice(4, 12))]
    assert shift == pytest.approx(0.5 * max(share), rel=1e-3)


def test_the_distance_is_counted_from_the_cut():
    whole = torch.zeros(4, 4, 10)
    halves = torch.stack([torch.full((4, 4), float(min(abs(k - 4), abs(k - 5)))) for k in range(10)], dim=-1)
    assert script.by_distance(halves, whole, np.ones((4, 4, 10), bool)) == [0, 1, 2, 3, 4]


def test_tiles_in_plane_have_borders_in_plane():
    hu = torch.from_numpy(phantom_hu(slices=4, size=64))
    body = touchable(hu.numpy())
    inferer = RestorationInferer(tile_size=(32, 64, 4), overlap=0.5)
    axes = [inferer.spans(axis, 0, size, multiple=16) for axis, size in enumerate(hu.shape)]
    whole = hu + torch.randn(hu.shape, generator=torch.Generator().manual_seed(0))
    tiled = whole.clone()
    tiled[23:25] += 0.5  # rows in the middle of the overlap of the first two, which start 16 rows apart
    computed, at, elsewhere, _, _ = script.figures(tiled, axes, whole, hu, body)
    assert computed == 3 * 32 / 64 and at > 0 and elsewhere == 0


def shipped_and(series):
    network = build_restorer("small").eval()
    load_weights(network, ROOT / "models" / "model.pt")
    return network, read_volume(str(CT / series))


@pytest.mark.full
@pytest.mark.skipif(not CT.is_dir(), reason="no shared data")
@pytest.mark.parametrize("steps", [1, 4])
def test_no_seam_with_the_shipped_weights(steps):
    """Where passes or default tiles meet, the whole is met as well as elsewhere, to what changes are kept in."""
    network, volume = shipped_and("lidc_0314")
    box = (slice(160, 320), slice(160, 320), slice(72))
    hu, body = torch.from_numpy(volume.array[box].copy()), touchable(volume.array)[box]

    def restored(**cut):
        inferer = RestorationInferer(steps=steps, mixed_precision="off", **cut)
        return script.restored(network, hu, volume.spacing_mm, inferer)

    whole, _ = restored(slices_at_once=0, tile_size=hu.shape)
    flowing = restored(slices_at_once=4)
    _, at, elsewhere, shift, ratio = script.figures(*flowing, whole, hu, body)
    assert at < 1e-3 and at < 1.5 * elsewhere and shift < 1e-4 and abs(ratio - 1) < 1e-3
    tiles = restored(slices_at_once=0)
    assert [len(axis) for axis in tiles[1]] == [1, 1, 3]
    _, at, elsewhere, shift, ratio = script.figures(*tiles, whole, hu, body)
    assert at < elsewhere + RESOLUTION_HU and shift < 1e-4 and abs(ratio - 1) < 1e-3
    at_tiles = {}
    for overlap in (4, 8, 16):
        tiles = restored(slices_at_once=0, tile_size=(512, 512, 32), slice_overlap=overlap)
        _, at_tiles[overlap], _, shift, ratio = script.figures(*tiles, whole, hu, body)
        assert shift < 0.5
    assert at_tiles[16] < at_tiles[8] / 4 < at_tiles[4] / 8
    assert at_tiles[16] < ROUNDING_HU / 50 and abs(ratio - 1) < 2e-3


@pytest.mark.full
@pytest.mark.skipif(not CT.is_dir(), reason="no shared data")
@pytest.mark.parametrize("steps", [1, 4])
def test_no_seam_in_plane_with_the_shipped_weights(steps):
    """Tiles of 256 x 256, half the default, differ from the whole by a fifth of what rounding does where they meet."""
    network, volume = shipped_and("crlm_1004")
    box = (slice(128, 384), slice(64, 448), slice(8))
    hu, body = torch.from_numpy(volume.array[box].copy()), touchable(volume.array[:, :, :8])[box]

    def restored(rows):
        inferer = RestorationInferer(
            steps=steps, mixed_precision="off", slices_at_once=0, tile_size=(rows, rows, 24), slice_overlap=8
        )
        return script.restored(network, hu, volume.spacing_mm, inferer)

    whole, _ = restored(384)
    tiles = restored(256)
    assert [len(axis) for axis in tiles[1]] == [1, 2, 1]
    _, at, _, shift, _ = script.figures(*tiles, whole, hu, body)
    assert 0 < at < ROUNDING_HU / 5 and shift < 0.5
