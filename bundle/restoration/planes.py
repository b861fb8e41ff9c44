"""Pictures of a restoration in three planes, packed for a browser, within a number of bytes.

Pixels travel as compressed integers and become pictures in the browser, so that one copy of them serves every window,
and the difference is exact.
"""

import base64
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from bundle.restoration.restored import RestoredSlices, SourceSlices

MOST_BYTES = 13_000_000
_CROSS_BYTES = 2_200_000  # of these for the coronal and for the sagittal plane, each; the axial one takes what is left
_AXIAL, _CROSS = 24, 12  # pictures of a plane at most
_MOST_PIXELS = 1024  # rows or columns of a picture: beyond it every other pixel is shown, or every third ...


class Slices(Protocol):
    """Anything with slices [:, :, k], HU (H, W): an array, or a restoration made slice by slice."""

    def __getitem__(self, index: Any) -> np.ndarray:
        """One slice."""


def planes(source: SourceSlices, restored: RestoredSlices, uncertainty: Slices | None) -> list[dict[str, Any]]:
    """Axial, coronal and sagittal plane: name, aspect (height by width of a pixel) and packed pictures, evenly spread.

    Together at most MOST_BYTES: where noise packs badly there are fewer pictures, and a plane without any is left out.
    """
    width, height, depth = source.shape  # i, j, k: right to left, front to back, slices
    numbers = {"axial": spread(depth, _AXIAL), "coronal": spread(height, _CROSS), "sagittal": spread(width, _CROSS)}
    axial, rows, columns = [], [], []
    for k in range(depth):
        deviation = None if uncertainty is None else np.asarray(uncertainty[:, :, k], np.float32)
        maps = _whole(source.slice_hu(k), restored[:, :, k], deviation)
        if k in numbers["axial"]:
            axial.append(_picture({name: values.T for name, values in maps.items()}, f"slice {k + 1}"))
        # Copies, or each would keep its whole slice.
        rows.append({name: values[:, numbers["coronal"]].copy() for name, values in maps.items()})
        columns.append({name: values[numbers["sagittal"]].copy() for name, values in maps.items()})
    coronal = [
        _picture({name: np.stack([one[name][:, n] for one in rows[::-1]]) for name in rows[0]}, f"row {j + 1}")
        for n, j in enumerate(numbers["coronal"])
    ]
    sagittal = [
        _picture({name: np.stack([one[name][n] for one in columns[::-1]]) for name in columns[0]}, f"column {i + 1}")
        for n, i in enumerate(numbers["sagittal"])
    ]
    cross = [fitting(pictures, _CROSS_BYTES) for pictures in (coronal, sagittal)]
    room = MOST_BYTES - sum(size_of(picture) for pictures in cross for picture in pictures)
    shown = fitting(axial, room) or [
        axial[len(axial) // 2]
    ]  # one always fits: 1024 x 1024 numbers of two bytes, thrice
    across, along, between = source.spacing_mm
    return [
        {"name": name, "aspect": aspect * _step(rows_) / _step(columns_), "pictures": pictures}
        for name, aspect, (rows_, columns_), pictures in (
            ("axial", along / across, (height, width), shown),
            ("coronal", between / across, (depth, width), cross[0]),
            ("sagittal", between / along, (depth, height), cross[1]),
        )
        if pictures
    ]


def packed(values: np.ndarray) -> str:
    """Whole numbers (rows, columns), int16, as base64 of deflated differences along rows, little endian."""
    whole = values.astype("<i2")
    step = np.diff(whole, axis=1, prepend=np.zeros((len(whole), 1), "<i2")).astype("<i2")
    # High and low bytes apart compress to two thirds of what they take together.
    halves = step.tobytes()[0::2] + step.tobytes()[1::2]
    return base64.b64encode(zlib.compress(halves, 6)).decode()


def size_of(picture: Mapping[str, Any]) -> int:
    """Bytes of a packed picture."""
    return sum(len(part) for part in picture.values() if isinstance(part, str))


def fitting(pictures: Sequence[dict[str, Any]], most_bytes: int) -> list[dict[str, Any]]:
    """As many of the pictures as fit into so many bytes together, evenly spread; [] where none does."""
    for count in range(len(pictures), 0, -1):
        chosen = [pictures[n] for n in spread(len(pictures), count)]
        if sum(map(size_of, chosen)) <= most_bytes:
            return chosen
    return []


def spread(total: int, most: int) -> list[int]:
    """At most so many numbers below `total`, evenly spread."""
    if total <= most:
        return list(range(total))
    return [int(value) for value in np.unique(np.linspace(0, total - 1, most + 2)[1:-1].round())]


def _whole(before_hu: np.ndarray, after_hu: np.ndarray, deviation_hu: np.ndarray | None) -> dict[str, np.ndarray]:
    """Input in HU, change and deviation in tenths, (H, W) int16."""
    maps = {"input": before_hu, "change": 10 * (after_hu - before_hu)}
    if deviation_hu is not None:
        maps["deviation"] = 10 * deviation_hu
    return {name: np.clip(np.round(values), -32000, 32000).astype(np.int16) for name, values in maps.items()}


def _picture(maps: Mapping[str, np.ndarray], label: str) -> dict[str, Any]:
    rows, columns = next(iter(maps.values())).shape
    shown = {name: values[:: _step(rows), :: _step(columns)] for name, values in maps.items()}
    rows, columns = shown["input"].shape
    return {"rows": rows, "columns": columns, "label": label, **{name: packed(one) for name, one in shown.items()}}


def _step(size: int) -> int:
    return -(-size // _MOST_PIXELS)
