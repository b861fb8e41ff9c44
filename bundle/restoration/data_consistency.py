"""Data consistency of thin slices made of thick ones: averaged over a thick slice, they give what was measured there.

Thick slices y of a patient x are y = A x, A the averages of `bundle.degrade.slabs`. Of all thin slices with A x = y the
nearest to a network's are x + A^T (A A^T)^-1 (y - A x), an orthogonal projection: where the patient fulfils A x = y, no
error grows by it, and what no thick slice says (the null space of A) stays the network's (Schwab, Antholzer and
Haltmeier, Inverse Problems 35, 2019, doi:10.1088/1361-6420/aaf14a).
"""

import numpy as np

from bundle.degrade.slabs import ThickSlices, linear_weights
from bundle.dicom.elements import Unusable, decimals
from bundle.dicom.volume import Volume
from bundle.pages import let_go
from bundle.restoration.restored import SourceSlices

# Slices that overlap say nearly the same twice. Differences between them that are smaller than this share of the
# largest are noise rather than patient, and are left to the network.
_LEAST_EIGENVALUE = 0.1
_MOST_OVERLAP = 2.0  # times the distance: a thickness beyond it is a slip of the header or a slab, and says too little
_BLOCK_VOXELS = 2**23  # float32 of a few such blocks are in memory at once


class DataConsistency:
    """Changes thin slices no more than their averages need to be those of the thick slices that they came from.

    Args:
        averages: from thin slices to thick ones (thick, thin).
        thick_of_interpolated: from slices interpolated between thick ones back to these (thick, thin).
    """

    def __init__(self, averages: np.ndarray, thick_of_interpolated: np.ndarray) -> None:
        gram = averages @ averages.T
        back = averages.T @ np.linalg.pinv(gram, rcond=_LEAST_EIGENVALUE, hermitian=True)
        # On a difference from the interpolated slices; constant HU cancel, so that float32 is enough.
        self._of_interpolated = (back @ (thick_of_interpolated - averages)).astype(np.float32)
        self._of_difference = (back @ averages).astype(np.float32)

    @classmethod
    def of_slabs(cls, slabs: ThickSlices, *, count: int, step_mm: float) -> "DataConsistency":
        """For `count` thin slices that `slabs.apply` made thick and interpolated again."""
        thick_to_thin = linear_weights(slabs.centres_mm(count, step_mm), np.arange(count) * step_mm)
        return cls(slabs.slab_weights(count, step_mm), np.linalg.pinv(thick_to_thin))

    def change(self, difference: np.ndarray, interpolated: np.ndarray) -> np.ndarray:
        """What has to be added, HU (..., thin), float32.

        Args:
            difference: of the network, from `interpolated`, HU (..., thin).
            interpolated: between thick slices, HU (..., thin).
        """
        of_interpolated = interpolated.astype(np.float32) @ self._of_interpolated.T
        return of_interpolated - difference.astype(np.float32) @ self._of_difference.T


def slabs_of(source: SourceSlices) -> ThickSlices | None:
    """The thick slices that a series was brought onto thinner ones from, the first over the first thin one.

    None where it was not, or where its headers do not say how thick they are.
    """
    if not isinstance(source, Volume) or source.origins is None:
        return None
    try:
        thickness_mm = decimals(source.source_headers[0], "SliceThickness", count=1)[0]
    except Unusable:
        return None
    places = source.origins.below + source.origins.weight
    distance_mm = float(source.spacing_mm[2] * (len(places) - 1) / (places[-1] - places[0]))
    if not 0 < thickness_mm <= _MOST_OVERLAP * distance_mm + 1e-3:
        return None
    return ThickSlices(thickness_mm=thickness_mm, increment_mm=distance_mm, offset_mm=0.0)


def consistency_of(source: SourceSlices) -> DataConsistency | None:
    """For a series brought onto thinner slices (`slabs_of`); None where nothing is known, or all reaches beyond it.

    Thick slices that reach beyond the thin ones are left out: what they averaged is not all there.
    """
    slabs = slabs_of(source)
    if slabs is None:
        return None
    assert isinstance(source, Volume) and source.origins is not None
    depth, step_mm, origins = source.shape[2], source.spacing_mm[2], source.origins
    averages = slabs.slab_weights(depth, step_mm)
    whole = slabs.whole(depth, step_mm)
    if not whole.any():
        return None
    thick_to_thin = np.zeros((depth, int(origins.above.max()) + 1))
    thick_to_thin[np.arange(depth), origins.below] = 1 - origins.weight
    thick_to_thin[np.arange(depth), origins.above] += origins.weight
    # Interpolated values were rounded to stored ones: where a thin slice is a thick one, that slice counts alone.
    trust = np.where(origins.exact, 1000.0, 1.0)
    thick_of_thin = (np.linalg.pinv(thick_to_thin * trust[:, None]) * trust)[: len(whole)]
    return DataConsistency(averages[whole], thick_of_thin[whole])


def make_consistent(difference: np.ndarray, source: SourceSlices) -> None:
    """Change the difference (H, W, D) from a series on thinner slices in place; leaves all others as they are."""
    consistency = consistency_of(source)
    if consistency is None:
        return
    assert isinstance(source, Volume)
    height, width, depth = difference.shape
    columns = max(_BLOCK_VOXELS // (height * depth), 1)
    for first in range(0, width, columns):
        block = np.s_[:, first : first + columns]
        stored = source.stored[block]
        interpolated = stored.astype(np.float32) * source.slope.astype(np.float32)
        interpolated += source.intercept.astype(np.float32)
        change = consistency.change(difference[block], interpolated)
        difference[block] = difference[block] + change  # in single precision, rounded once
        let_go(source.stored)
        let_go(difference)
