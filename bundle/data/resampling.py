"""MONAI's resampling of a volume, a few slices at a time, so that memory does not go with the volume."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import SpatialResample
from monai.utils.enums import TraceKeys
from numpy.typing import DTypeLike

from bundle.pages import Pages, let_go, plain_pages

_AT_ONCE = 8  # slices of the result; MONAI's coordinates and values in double precision take 40 bytes a voxel
_LINEAR = ("bilinear", "nearest")  # what sees no further than the next voxel


class SlabResample(SpatialResample):
    """SpatialResample whose result is made a slab of slices after the other; it inverts as SpatialResample does.

    Args:
        pages: makes the array for the result, in memory or on disk.
        **others: as for SpatialResample.
    """

    def __init__(self, *, pages: Pages = plain_pages, **others: object) -> None:
        super().__init__(**others)  # type: ignore[arg-type]
        self.pages = pages

    def __call__(  # type: ignore[override]
        self,
        img: torch.Tensor,
        dst_affine: torch.Tensor | None = None,
        spatial_size: Sequence[int] | None = None,
        mode: str | int | None = None,
        padding_mode: str | None = None,
        align_corners: bool | None = None,
        dtype: DTypeLike | None = None,
        lazy: bool | None = None,
    ) -> torch.Tensor:
        """Return (1, H, W, D), float32; arguments as of SpatialResample, which does what is no such volume."""
        settings: dict[str, Any] = {
            "mode": self.mode if mode is None else mode,
            "padding_mode": self.padding_mode if padding_mode is None else padding_mode,
            "align_corners": self.align_corners if align_corners is None else align_corners,
            "dtype": dtype or self.dtype,
        }
        volume = isinstance(img, MetaTensor) and img.ndim == 4 and len(img) == 1
        if not volume or lazy or dst_affine is None or spatial_size is None or settings["mode"] not in _LINEAR:
            return super().__call__(img, dst_affine, spatial_size, lazy=lazy, **settings)
        assert isinstance(img, MetaTensor)
        height, width, depth = (int(size) for size in spatial_size)
        affine = torch.as_tensor(dst_affine, dtype=torch.float64)
        made = self.pages((depth, width, height), np.float32).transpose(2, 1, 0)
        with self.trace_transform(False):
            for start in range(0, depth, _AT_ONCE):
                stop = min(start + _AT_ONCE, depth)
                seen = _seen(img, affine, (height, width), start, stop)
                slab = super().__call__(
                    MetaTensor(img.as_tensor()[..., seen], affine=_from(img.affine, seen.start)),
                    _from(affine, start),
                    (height, width, stop - start),
                    lazy=False,
                    **settings,
                )
                made[..., start:stop] = torch.as_tensor(slab)[0].numpy()
                let_go(made[..., start:stop])
                let_go(img.as_tensor()[0, ..., seen].numpy())
        done = {**settings, "src_affine": img.affine.clone()}
        result = MetaTensor(
            torch.from_numpy(made)[None], meta=dict(img.meta), applied_operations=list(img.applied_operations)
        )
        result.affine = affine
        self.push_transform(result, orig_size=tuple(img.shape[1:]), extra_info=done)
        return result

    def inverse(self, data: torch.Tensor) -> torch.Tensor:
        """Resample to where the image came from."""
        done = self.pop_transform(data)
        settings = dict(done[TraceKeys.EXTRA_INFO])
        with self.trace_transform(False):
            return self(data, settings.pop("src_affine"), done[TraceKeys.ORIG_SIZE], **settings)


def _seen(img: MetaTensor, affine: torch.Tensor, plane: tuple[int, int], start: int, stop: int) -> slice:
    """Slices of `img` that slices start to stop of the grid `affine` lie between."""
    to_source = np.linalg.solve(np.asarray(img.affine, np.float64), affine.numpy())
    corners = np.array(
        [[i, j, k, 1] for i in (0, plane[0] - 1) for j in (0, plane[1] - 1) for k in (start, stop - 1)], np.float64
    )
    places = (to_source @ corners.T)[2]
    depth = img.shape[-1]
    # One more on either side: what lies on a slice may come out a rounding error beside it.
    low = min(max(int(np.floor(places.min())) - 1, 0), depth - 1)
    return slice(low, min(max(int(np.ceil(places.max())) + 2, low + 1), depth))


def _from(affine: torch.Tensor | np.ndarray, k: int) -> torch.Tensor:
    """The affine of a grid that begins at slice k."""
    moved = torch.as_tensor(affine, dtype=torch.float64).clone()
    moved[:3, 3] += moved[:3, 2] * k
    return moved
