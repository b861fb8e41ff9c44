"""MONAI transforms of this bundle that are neither about DICOM nor about degradation."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import nibabel
import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Orientationd, Spacingd

from bundle.configuration import three_numbers
from bundle.data.resampling import SlabResample
from bundle.degrade.low_dose import Scanner
from bundle.degrade.transforms import UnitNoised
from bundle.errors import BundleError
from bundle.pages import Pages, plain_pages

_AXES = (("L", "R"), ("P", "A"), ("I", "S"))  # towards negative and positive RAS+ directions


class SlicesLastOrientationd(Orientationd):
    """MONAI's Orientationd to a standard orientation that keeps the slice axis last.

    An axial series comes out as L-P-S, the usual reading order; a coronal or sagittal one keeps its own slice
    axis as D, so that networks which never mix far slices do not mix them. Inverts as Orientationd does.
    """

    def __init__(self, keys: KeysCollection, *, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, axcodes="LPS", allow_missing_keys=allow_missing_keys, labels=_AXES)

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        """Reorient every key by the axes of its own affine."""
        result = dict(data)
        for key in self.key_iterator(result):
            # One instance for all keys: the inverse looks for the instance that a tensor was oriented by.
            self.ornt_transform.axcodes = axis_codes(result[key].affine)
            result[key] = self.ornt_transform(result[key])
        return result


class NetworkSpacingd(Spacingd):
    """MONAI's Spacingd that leaves a native grid alone, a sheared one too.

    Spacingd makes every grid orthogonal, so that with the native spacing asked for (-1 along all axes) it would still
    resample a tilted gantry's sheared slices, and again on the way back: all of a restoration would be blurred. Here a
    sheared grid becomes orthogonal only where another spacing is asked for. Inverts as Spacingd does.

    Args:
        keys: images (C, H, W, D).
        pixdim: spacing in mm along H, W and D; -1 keeps the native one.
        mode: interpolation.
        allow_missing_keys: whether items without a key pass.
        pages: makes the arrays for results, in memory or on disk.

    Raises:
        BundleError: when `pixdim` is not three numbers, or one of them 0.
    """

    def __init__(
        self,
        keys: KeysCollection,
        pixdim: Sequence[float],
        *,
        mode: str = "bilinear",
        allow_missing_keys: bool = False,
        pages: Pages = plain_pages,
    ) -> None:
        pixdim = three_numbers("spacing_mm", pixdim, float)
        if 0 in pixdim:
            raise BundleError("spacing_mm cannot be 0 mm", hint="-1 keeps the native spacing")
        super().__init__(keys, pixdim=pixdim, mode=mode, allow_missing_keys=allow_missing_keys)
        plain = self.spacing_transform.sp_resample
        self.spacing_transform.sp_resample = SlabResample(
            pages=pages,
            mode=plain.mode,
            padding_mode=plain.padding_mode,
            align_corners=plain.align_corners,
            dtype=plain.dtype,
        )
        self.native = all(spacing < 0 for spacing in pixdim)

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        """Resample every key, or none where the native spacing is asked for."""
        return dict(data) if self.native else super().__call__(data, lazy=lazy)

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Undo `__call__`."""
        return dict(data) if self.native else super().inverse(data)


def noise_keys(realisations: int) -> list[str]:
    """Keys that NoiseRealisationsd adds: 'quantum_0', 'electronic_0', 'quantum_1' ..."""
    return [f"{kind}_{number}" for number in range(realisations) for kind in ("quantum", "electronic")]


class NoiseRealisationsd(MapTransform):
    """Add several realisations of the unit noises of low dose, each under keys of its own (`noise_keys`).

    Args:
        keys: the one image (1, H, W, D) HU, on its native slices.
        realisations: how many.
        seed: of the first; the others follow.
        scanner: the physics.
        unless: data with this key have a real poor partner and need no noise.
        hann_cutoffs_per_mm: kernels of the realisations in turn, in place of the scanner's own, so that a model
            meets smoother and sharper noise.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        *,
        realisations: int,
        seed: int = 0,
        scanner: Scanner | None = None,
        hann_cutoffs_per_mm: Sequence[float] = (),
        unless: str = "poor",
    ) -> None:
        super().__init__(keys)
        self.unless = unless
        names = noise_keys(realisations)
        scanner = scanner or Scanner()
        cutoffs = list(hann_cutoffs_per_mm) or [scanner.hann_cutoff_per_mm]
        scanners = [replace(scanner, hann_cutoff_per_mm=cutoffs[r % len(cutoffs)]) for r in range(realisations)]
        self.each = [
            UnitNoised(keys, seed=seed + number, scanner=scanners[number], quantum=quantum, electronic=electronic)
            for number, (quantum, electronic) in enumerate(zip(names[::2], names[1::2], strict=True))
        ]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with the realisations added."""
        result = dict(data)
        for add in [] if self.unless in data else self.each:
            result = add(result)
        return result


def axis_codes(affine: torch.Tensor | np.ndarray) -> str:
    """Axis codes for an affine (4, 4, RAS) that keep its third axis third, e.g. 'LPS' for axial slices."""
    # nibabel's own choice, as Orientation makes it: near 45 degrees the nearest axis may go to another voxel axis.
    slices = int(nibabel.io_orientation(np.asarray(affine, dtype=float))[2, 0])  # type: ignore[no-untyped-call]
    in_plane = [axis for axis in (0, 1, 2) if axis != slices]
    towards = {0: "L", 1: "P", 2: "S"}
    return "".join(towards[axis] for axis in [*in_plane, slices])
