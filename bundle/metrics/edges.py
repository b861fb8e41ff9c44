"""Sharpness of real edges: the width over which an edge rises from 10 to 90 %. Volumes are HU (H, W, D).

Edges are found and aligned on the target once; the same profiles are then read from every restoration and
averaged, which removes noise without smoothing along the profile.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

REACH_MM = 4.0  # of a profile to either side
STEP_MM = 0.1
FINDING_SIGMA_PIXELS = 1.0
SURFACE_HU = (-850.0, -250.0)  # air outside at most, skin and fat inside at least
INNER_CONTRAST_HU = 150.0
INNER_MARGIN_PIXELS = 12  # keeps inner edges away from the surface
MOST_PER_SLICE = 1500
MIN_EDGES = 50


@dataclass(frozen=True)
class Edges:
    """Aligned edges of a target: profiles of any volume on the same grid can be read along them.

    Attributes:
        points: (N, 3) row, column, slice; where the target crosses the middle of the edge.
        normals: (N, 2) pixels per mm along rows and columns, towards the denser side.
        low: (N,) HU of the target on the thin side.
        high: (N,) HU of the target on the dense side.
    """

    points: np.ndarray
    normals: np.ndarray
    low: np.ndarray
    high: np.ndarray


def surface_edges(target_hu: np.ndarray, body: np.ndarray, *, spacing_mm: tuple[float, ...]) -> Edges:
    """Edges between air and skin; clothes and table leave none, because the air outside has to be air."""

    def candidates(k: int, _: np.ndarray) -> np.ndarray:
        inside = np.ascontiguousarray(body[:, :, k])
        return inside & ~ndimage.binary_erosion(inside, border_value=1)

    def kept(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        return (low < SURFACE_HU[0]) & (high > SURFACE_HU[1])

    return _find(target_hu, candidates, kept, spacing_mm)


def inner_edges(target_hu: np.ndarray, body: np.ndarray, *, spacing_mm: tuple[float, ...]) -> Edges:
    """Edges inside the body of at least 150 HU: vessels in lung, contrast-filled vessels, bone."""

    def candidates(k: int, smooth: np.ndarray) -> np.ndarray:
        inside = ndimage.binary_erosion(body[:, :, k], iterations=INNER_MARGIN_PIXELS, border_value=1)
        size = ndimage.gaussian_gradient_magnitude(smooth, 0.5)
        ridge = size >= ndimage.maximum_filter(size, 3)
        return inside & ridge & (size > INNER_CONTRAST_HU / 8)

    def kept(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        return high - low >= INNER_CONTRAST_HU

    return _find(target_hu, candidates, kept, spacing_mm)


def edge_width_mm(volume_hu: np.ndarray, edges: Edges) -> float:
    """10-90 % width in mm of the mean profile of `volume_hu` along `edges`.

    Raises:
        ValueError: with fewer than 50 edges.
    """
    if len(edges.points) < MIN_EDGES:
        raise ValueError(f"{len(edges.points)} edges are too few for a mean profile: {MIN_EDGES} are needed")
    distances = np.arange(-REACH_MM, REACH_MM + STEP_MM / 2, STEP_MM)
    profiles = read_profiles(volume_hu, edges, distances)
    relative = (profiles - edges.low[:, None]) / (edges.high - edges.low)[:, None]
    return rise_width(distances, relative.mean(axis=0))


def rise_width(distances: np.ndarray, profile: np.ndarray) -> float:
    """10-90 % width of a rising profile, between the levels of its outer eighths, in units of `distances`."""
    outer = max(len(profile) // 8, 1)
    low, high = profile[:outer].mean(), profile[-outer:].mean()
    middle = len(profile) // 2
    relative = (profile - low) / (high - low)
    # From the middle outwards, so that ripples of the plateaux do not count.
    left = relative[: middle + 1][::-1]
    right = relative[middle:]
    ten = distances[middle] - _first(1 - left, 0.9) * (distances[1] - distances[0])
    ninety = distances[middle] + _first(right, 0.9) * (distances[1] - distances[0])
    return float(ninety - ten)


def read_profiles(volume_hu: np.ndarray, edges: Edges, distances: np.ndarray) -> np.ndarray:
    """HU (N, len(distances)) along the normals of `edges`, by cubic splines within each slice."""
    profiles = np.empty((len(edges.points), len(distances)))
    for k in np.unique(edges.points[:, 2]):
        chosen = edges.points[:, 2] == k
        spline = ndimage.spline_filter(np.asarray(volume_hu[:, :, int(k)], np.float64), 3)
        points, normals = edges.points[chosen], edges.normals[chosen]
        places = [points[:, axis, None] + normals[:, axis, None] * distances for axis in (0, 1)]
        profiles[chosen] = ndimage.map_coordinates(spline, places, order=3, prefilter=False, mode="nearest")
    return profiles


def _find(
    target_hu: np.ndarray,
    candidates: Callable[[int, np.ndarray], np.ndarray],
    kept: Callable[[np.ndarray, np.ndarray], np.ndarray],
    spacing_mm: tuple[float, ...],
) -> Edges:
    points, normals = [], []
    for k in range(target_hu.shape[2]):
        smooth = ndimage.gaussian_filter(np.asarray(target_hu[:, :, k], np.float32), FINDING_SIGMA_PIXELS)
        places = np.argwhere(candidates(k, smooth))
        if len(places) > MOST_PER_SLICE:
            places = places[np.linspace(0, len(places) - 1, MOST_PER_SLICE).astype(int)]
        gradient = [ndimage.sobel(smooth, axis)[tuple(places.T)] / spacing_mm[axis] for axis in (0, 1)]
        length = np.maximum(np.hypot(*gradient), 1e-6)
        points.append(np.column_stack([places, np.full(len(places), k)]).reshape(-1, 3).astype(float))
        normals.append(np.column_stack([gradient[axis] / length / spacing_mm[axis] for axis in (0, 1)]))
    whole = Edges(np.concatenate(points), np.concatenate(normals), np.empty(0), np.empty(0))
    return _align(target_hu, whole, kept)


def _align(target_hu: np.ndarray, edges: Edges, kept: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Edges:
    """Shift each edge to where the target crosses its middle level; drop what is no clean edge."""
    distances = np.arange(-REACH_MM, REACH_MM + STEP_MM / 2, STEP_MM)
    profiles = read_profiles(target_hu, edges, distances)
    outer = len(distances) // 8
    low, high = profiles[:, :outer].mean(axis=1), profiles[:, -outer:].mean(axis=1)
    rises = np.diff(profiles > ((low + high) / 2)[:, None], axis=1)
    nearest = np.where(rises, np.abs(distances[:-1]), np.inf)
    index = nearest.argmin(axis=1)
    good = kept(low, high) & (nearest.min(axis=1) < REACH_MM / 4) & (rises.sum(axis=1) == 1)
    rows = np.arange(len(index))
    before, after = profiles[rows, index], profiles[rows, index + 1]
    part = ((low + high) / 2 - before) / np.where(after == before, 1, after - before)
    shift = distances[index] + part * STEP_MM
    points = edges.points.copy()
    points[:, :2] += edges.normals * shift[:, None]
    return Edges(points[good], edges.normals[good], low[good], high[good])


def _first(values: np.ndarray, level: float) -> float:
    """Position, in samples, where `values` first reach `level`; the last one where they never do."""
    above = np.flatnonzero(values >= level)
    if not len(above):
        return float(len(values) - 1)
    i = int(above[0])
    return float(i) if i == 0 else i - 1 + (level - values[i - 1]) / (values[i] - values[i - 1])
