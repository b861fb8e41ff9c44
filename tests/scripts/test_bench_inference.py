import numpy as np
import torch
from script_modules import load_script

from bundle.networks.presets import build_restorer
from bundle.restoration.inferer import RestorationInferer

bench = load_script("bench_inference")


def test_red_cnn_is_the_published_one():
    network = bench.RedCNN()
    # 1 -> 96, four of 96 -> 96, five transposed back, 5 x 5, with biases.
    assert sum(p.numel() for p in network.parameters()) == 2 * 2400 + 8 * 96 * 96 * 25 + 9 * 96 + 1
    with torch.no_grad():
        assert network(torch.rand(1, 1, 40, 33)).shape == (1, 1, 40, 33)


def test_the_parts_of_a_profile_add_up_and_nothing_stays_behind():
    network = build_restorer("tiny").eval()
    volume = np.random.default_rng(0).normal(40, 20, (64, 64, 4)).astype(np.float32)
    run = bench.ours(network, RestorationInferer(mixed_precision="off"), 1)
    parts = bench.profile(network, run, volume)
    assert set(parts) == {"encoder", "decoder", "denoiser", "refiner", "noise estimate, units, tiles"}
    assert all(value >= 0 for value in parts.values())
    assert "forward" not in vars(network.denoiser) and "encode" not in vars(network.autoencoder)


def test_every_method_is_timed_in_every_round():
    seen = []
    found = {"a": (lambda v: seen.append(("a", v.shape[2])), 2), "b": (lambda v: seen.append(("b", v.shape[2])), 1)}
    seconds = bench.measure(found, np.zeros((4, 4, 8), np.float32), rounds=2)
    often = 1 + bench.UNTIMED
    assert seen == ([("a", 2)] * often + [("b", 1)] * often) * 2 and [len(values) for values in seconds.values()] == [
        2,
        2,
    ]
