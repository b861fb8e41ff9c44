"""Noise is a function of position: any cut of a volume sees the same."""

import numpy as np
import pytest
import torch

from bundle.diffusion.noise import BLOCK, PositionalNoise

WHOLE = (70, 40, 5)


def whole(step=0, **options):
    return PositionalNoise(**({"seed": 7} | options)).window(step, (0, 0, 0), channels=3, shape=WHOLE)


@pytest.mark.parametrize(
    ("origin", "shape"),
    [((0, 0, 0), (1, 1, 1)), ((31, 5, 2), (2, 30, 3)), ((BLOCK, BLOCK, 4), (38, 8, 1)), ((69, 39, 0), (1, 1, 5))],
)
def test_a_window_is_that_part_of_the_whole(origin, shape):
    part = PositionalNoise(seed=7).window(0, origin, channels=3, shape=shape)
    cut = tuple(slice(start, start + size) for start, size in zip(origin, shape, strict=True))
    np.testing.assert_array_equal(part, whole()[(slice(None), *cut)])


def test_seed_draw_step_slice_and_block_each_give_other_noise():
    base = whole()
    others = [whole(seed=8), whole(draw=1), whole(step=1)]
    pairs = [(base, other) for other in others]
    pairs += [(base[..., 0], base[..., 1]), (base[:, :8, :8, 0], base[:, BLOCK : BLOCK + 8, :8, 0])]
    pairs += [(base[:, :8, :8, 0], base[:, :8, BLOCK : BLOCK + 8, 0]), (base[0], base[1])]
    for one, other in pairs:
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 5 / np.sqrt(one.size)


def test_it_is_standard_normal():
    values = PositionalNoise(seed=1).window(0, (0, 0, 0), channels=16, shape=(64, 64, 8)).ravel()
    error = 1 / np.sqrt(values.size)
    assert abs(values.mean()) < 5 * error
    assert abs(values.var() - 1) < 5 * error * np.sqrt(2)
    assert np.mean(np.abs(values) < 1) == pytest.approx(0.6827, abs=0.003)


def test_a_batch_is_its_windows():
    noise = PositionalNoise(seed=7)
    origins = [(0, 0, 0), (4, 8, 1)]
    batch = noise.at(origins, (2, 3, 16, 16, 2))(3)
    assert batch.shape == (2, 3, 16, 16, 2) and batch.dtype is torch.float32
    for k, origin in enumerate(origins):
        np.testing.assert_array_equal(batch[k].numpy(), noise.window(3, origin, channels=3, shape=(16, 16, 2)))


@pytest.mark.parametrize(("name", "value"), [("seed", -1), ("draw", -1), ("seed", 1 << 63)])
def test_impossible_keys_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        PositionalNoise(**({"seed": 0} | {name: value}))
