"""What norms cost where tiles meet: the script on a phantom, with random weights."""

import re

import pytest
import torch
from phantom_series import write_phantom_series
from script_modules import load_script

from bundle.networks.presets import build_restorer

script = load_script("measure_norms")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Row name -> numbers, as the script prints them."""
    folder = tmp_path_factory.mktemp("norms")
    write_phantom_series(folder / "in", slices=6, size=96)
    torch.manual_seed(0)
    torch.save(build_restorer("full_quarter").state_dict(), folder / "model.pt")
    options = ["--dataset_dir", folder / "in", "--weights_file", folder / "model.pt", "--size", 96, "--slices", 6]
    options += ["--tile_size", 64, 64, 6, "--steps", 1]
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("builtins.print", lambda *words, **_: lines.append(" ".join(map(str, words))))
        patch.setattr("sys.argv", ["measure_norms", *map(str, options)])
        script.main()
    found = [re.match(r"(\S.*?)  +(-?[\d.].*)", line) for line in lines[2:]]
    return {match[1]: [float(cell) for cell in match[2].split()] for match in found}


def test_a_row_for_the_whole_and_for_both_kinds_of_norms(rows):
    ways = ("whole", "norms by their own", "norms shared")
    assert list(rows) == [f"{what}, {way}" for what in ("autoencoder", "1 steps") for way in ways]
    assert [len(cells) for cells in rows.values()] == [1, 5, 5] * 2


def test_the_two_kinds_differ_and_neither_is_the_whole(rows):
    alone, shared = rows["autoencoder, norms by their own"], rows["autoencoder, norms shared"]
    assert alone != shared and min(alone[1:3] + shared[1:3]) > 0
