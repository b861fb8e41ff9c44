"""Noise tied to places: what is drawn at a latent position depends on that position alone, not on how it was cut.

A counter-based generator (Philox; Salmon et al. 2011, doi:10.1145/2063384.2063405) has no state to carry from one
draw to the next: its key is (seed, draw), its counter names a block of one slice at one step. Two tiles that share
a voxel therefore get the same noise there, in whatever order, batch or process they are restored.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bundle.diffusion.process import Noise

BLOCK = 32  # latent positions along rows and columns that one counter stands for
_SEEDS = 1 << 63


@dataclass(frozen=True, kw_only=True)
class PositionalNoise:
    """Standard normal noise as a function of (seed, draw, step, channel, row, column, slice).

    Args:
        seed: of the run, not negative.
        draw: number of the sample; every draw is independent of the others.
    """

    seed: int
    draw: int = 0

    def __post_init__(self) -> None:
        for name in ("seed", "draw"):
            value = getattr(self, name)
            if not 0 <= value < _SEEDS:
                raise ValueError(f"{name} must be 0 or more and below 2^63, not {value}")

    def window(
        self, step: int, origin: tuple[int, int, int], *, channels: int, shape: tuple[int, int, int]
    ) -> np.ndarray:
        """Noise (channels, h, w, D), float32, of a window.

        Args:
            step: which of a sample's draws.
            origin: absolute latent row and column, and slice, of the window's first voxel; not negative.
            channels: of the latent; another number gives other noise.
            shape: h, w and D of the window.
        """
        assert min(origin) >= 0, "positions count from the volume's first voxel"
        height, width, depth = shape
        out = np.empty((channels, height, width, depth), np.float32)
        for row in range(origin[0] // BLOCK, -(-(origin[0] + height) // BLOCK)):
            rows, inner_rows = _overlap(row, origin[0], height)
            for column in range(origin[1] // BLOCK, -(-(origin[1] + width) // BLOCK)):
                columns, inner_columns = _overlap(column, origin[1], width)
                for k in range(depth):
                    block = self._block(step, row, column, origin[2] + k, channels)
                    out[:, rows, columns, k] = block[:, inner_rows, inner_columns]
        return out

    def at(self, origins: Sequence[tuple[int, int, int]], shape: Sequence[int]) -> Noise:
        """Noise for a batch of windows of one shape, as samplers ask for it.

        Args:
            origins: of each window, as for `window`.
            shape: (B, L, h, w, D) of the latents.
        """
        _, channels, height, width, depth = shape

        def noise(step: int) -> torch.Tensor:
            windows = [self.window(step, o, channels=channels, shape=(height, width, depth)) for o in origins]
            return torch.from_numpy(np.stack(windows))

        return noise

    def _block(self, step: int, row: int, column: int, k: int, channels: int) -> np.ndarray:
        # The lowest word counts within a block; the others name it, so that no two blocks share a number.
        counter = np.array([0, (row << 32) | column, k, step], np.uint64)
        bits = np.random.Philox(key=np.array([self.seed, self.draw], np.uint64), counter=counter)
        return np.random.Generator(bits).standard_normal((channels, BLOCK, BLOCK), dtype=np.float32)


def _overlap(block: int, start: int, length: int) -> tuple[slice, slice]:
    """Where block number `block` lies in a window that starts at `start`, and the part of the block that it shows."""
    low, high = max(block * BLOCK, start), min((block + 1) * BLOCK, start + length)
    return slice(low - start, high - start), slice(low - block * BLOCK, high - block * BLOCK)
