import numpy as np
import pytest
import torch
from script_modules import load_script
from training_fixtures import prepare


@pytest.fixture(scope="module")
def bench():
    module = load_script("bench_data")
    module.PATCH, module.SLICES = 16, 4
    return module


def test_the_three_give_the_same_kind_of_sample(bench, tmp_path):
    prepared = prepare(tmp_path, ["a", "b"], size=32, slices=8)
    makers = (
        bench.ours(prepared),
        bench.monais(prepared, persistent=None),
        bench.monais(prepared, persistent=tmp_path / "monai"),
    )
    for sample in makers:
        for index in range(4):
            item = sample(index)
            assert item["image"].shape == item["label"].shape == (1, 16, 16, 4)
            assert item["image"].dtype == torch.float32
        noise = np.std([float((sample(n)["image"] - sample(n)["image"].mean()).std()) for n in range(3)])
        assert np.isfinite(noise) and bench.rate(sample, 0.05) > 0


def test_the_load_is_said_in_the_figures_own_terms(bench):
    before = bench.Load((3.0, 3.0), 10.0, 4.0)
    load = bench.Load((5.0, 5.0), 30.0, 10.0).since(before)
    assert "20 s; load average 3.0 before and 5.0 at the end" in load.line and "had 0.30 cores" in load.line
