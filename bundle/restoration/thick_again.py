"""Thin slices made of thick ones, made thick again: they have to give the thick slices that they came from.

Between two thick slices anatomy changes, so that thin slices rightly differ from interpolated ones, also in their local
means. What may not change is what was measured: the mean of the thin slices over a thick one's thickness.
"""

from collections.abc import Sequence

import numpy as np

from bundle.dicom.volume import Volume
from bundle.restoration.data_consistency import slabs_of
from bundle.restoration.restored import SourceSlices


class ThickAgain:
    """Takes in thin slices one by one, and gives what thick slices made of them differ by.

    Args:
        exact: numbers of the thin slices that lie where a thick one was.
        thickness: of the thick slices, in thin slices (not whole).
        depth: number of thin slices; thick ones that reach beyond them are left out.
    """

    def __init__(self, exact: Sequence[int], *, thickness: float, depth: int) -> None:
        self._half = thickness / 2
        reach = self._half - 0.5  # the outermost slices take part with the share that lies within
        self._centres = [k for k in exact if reach <= k <= depth - 1 - reach]
        self._open: dict[int, tuple[np.ndarray, np.ndarray | None, np.ndarray | None]] = {}

    def add(
        self, k: int, before_hu: np.ndarray, after_hu: np.ndarray, region: np.ndarray
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Take in slice k; returns difference (H, W) HU and region (H, W) of each thick slice that it completes.

        Args:
            k: its number; slices come in order.
            before_hu: interpolated (H, W); where a thick slice was, that slice.
            after_hu: the result (H, W).
            region: bool (H, W).
        """
        done = []
        for centre in [centre for centre in self._centres if self._share(k - centre) > 0]:
            total, thick_hu, inside = self._open.pop(centre, (np.zeros(after_hu.shape, np.float32), None, None))
            total += np.float32(self._share(k - centre) / (2 * self._half)) * after_hu
            if k == centre:
                thick_hu, inside = before_hu.copy(), region.copy()
            if self._share(k + 1 - centre) > 0:
                self._open[centre] = total, thick_hu, inside
            elif thick_hu is not None and inside is not None:
                done.append((total - thick_hu, inside))
        return done

    def _share(self, distance: int) -> float:
        """Part of a thin slice so many slices away that lies within the thick one."""
        return float(np.clip(self._half - abs(distance) + 0.5, 0, min(1, 2 * self._half)))


def thick_again(source: SourceSlices) -> ThickAgain | None:
    """What checks a series brought onto thinner slices; None for one that was not, or says not how thick it is."""
    slabs = slabs_of(source)
    if slabs is None:
        return None
    assert isinstance(source, Volume)
    exact = [k for k in range(source.shape[2]) if source.is_true_slice(k)]
    return ThickAgain(exact, thickness=slabs.thickness_mm / source.spacing_mm[2], depth=source.shape[2])
