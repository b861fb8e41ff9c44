"""The inner loops of the projector, compiled, and the threads they run on.

Threads come from Python around kernels that release the lock, not from numba's own pool: that pool does not
survive a fork, and data loaders fork.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np


def compiled(function: Callable[..., None]) -> Callable[..., None]:
    """Compile a kernel, kept on disk between runs where a folder for that can be written to."""
    options: dict[str, Any] = {"nogil": True, "fastmath": True, "boundscheck": False}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # numba's "no locator available": a read-only installation and home
        return numba.njit(**options)(function)


@compiled
def scatter(
    first: int,
    last: int,
    image: np.ndarray,
    sinogram: np.ndarray,
    start: np.ndarray,
    row_step: np.ndarray,
    column_step: np.ndarray,
) -> None:
    """Add each pixel of `image` (H, W) to the two bins around it, in views [first, last) of `sinogram`."""
    one = np.float32(1)
    rows, columns = image.shape
    for view in range(first, last):
        step = column_step[view]
        for row in range(rows):
            offset = start[view] + np.float32(row) * row_step[view]
            for column in range(columns):
                position = offset + np.float32(column) * step
                index = np.int32(position)
                part = position - np.float32(index)
                value = image[row, column]
                sinogram[view, index] += (one - part) * value
                sinogram[view, index + 1] += part * value


@compiled
def gather(
    first: int,
    last: int,
    sinogram: np.ndarray,
    image: np.ndarray,
    start: np.ndarray,
    row_step: np.ndarray,
    column_step: np.ndarray,
) -> None:
    """Add to rows [first, last) of `image` (H, W) the value between two bins of every view of `sinogram`."""
    columns = image.shape[1]
    for row in range(first, last):
        for view in range(sinogram.shape[0]):
            offset = start[view] + np.float32(row) * row_step[view]
            step = column_step[view]
            for column in range(columns):
                position = offset + np.float32(column) * step
                index = np.int32(position)
                part = position - np.float32(index)
                left = sinogram[view, index]
                image[row, column] += left + part * (sinogram[view, index + 1] - left)


def threads() -> int:
    """Cores this process may use; NUMBA_NUM_THREADS sets it. (numba.get_num_threads would start its pool.)"""
    return int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]  # set at run time from the environment


def over_threads(kernel: Callable[..., None], count: int, *arguments: np.ndarray) -> None:
    """Run `kernel` over [0, count) in equal parts; the result does not depend on how many."""
    edges = np.linspace(0, count, min(threads(), count) + 1).astype(int)
    part = functools.partial(_run_part, kernel, arguments)
    if len(edges) == 2:
        part((0, count))
        return
    with ThreadPoolExecutor(len(edges) - 1) as pool:
        list(pool.map(part, zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)))


def _run_part(kernel: Callable[..., None], arguments: tuple[np.ndarray, ...], limits: tuple[int, int]) -> None:
    kernel(*limits, *arguments)
