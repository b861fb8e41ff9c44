"""Denoisers that need no training, from libraries; strengths are multiples of the noise that the input shows.

A multiple rather than a number of HU lets one choice serve series of different noise, as a user would want it.
"""

import importlib.util
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bundle.errors import BundleError
from bundle.evaluation.methods import Method, Problem

Parameters = Mapping[str, float]


@dataclass(frozen=True)
class Filter:
    """A classical denoiser: its function of (volume HU (H, W, D), noise HU, parameters), and what it is."""

    function: Callable[[np.ndarray, float, Parameters], np.ndarray]
    definition: str
    parameters: tuple[str, ...]


def optional_packages() -> dict[str, bool]:
    """Packages that some filters need and whether each is there: once it is, finished series lack rows."""
    return {name: importlib.util.find_spec(name) is not None for name in ("bm3d",)}


def gaussian(volume_hu: np.ndarray, noise_hu: float, parameters: Parameters) -> np.ndarray:
    """Gaussian filter of `sigma` pixels within slices."""
    sigma = parameters["sigma"]
    return ndimage.gaussian_filter(volume_hu, (sigma, sigma, 0))


def bilateral(volume_hu: np.ndarray, noise_hu: float, parameters: Parameters) -> np.ndarray:
    """Bilateral filter (Tomasi and Manduchi, ICCV 1998), slice by slice."""
    from skimage.restoration import denoise_bilateral

    def one(image: np.ndarray) -> np.ndarray:
        lowest = float(image.min())  # the library wants no negative values
        smooth = denoise_bilateral(
            image - lowest,
            sigma_color=max(parameters["strength"] * noise_hu, 0.1),
            sigma_spatial=parameters["sigma"],
            mode="reflect",
        )
        return smooth + lowest

    return _by_slice(one, volume_hu)


def nlm3d(volume_hu: np.ndarray, noise_hu: float, parameters: Parameters) -> np.ndarray:
    """Non-local means in 3D (Buades et al., CVPR 2005), patches of 3, searched 3 voxels around."""
    from skimage.restoration import denoise_nl_means

    strength = max(parameters["strength"] * noise_hu, 0.1)
    return denoise_nl_means(volume_hu, patch_size=3, patch_distance=3, h=strength, sigma=noise_hu, fast_mode=True)


def tv3d(volume_hu: np.ndarray, noise_hu: float, parameters: Parameters) -> np.ndarray:
    """Total variation in 3D (Rudin, Osher, Fatemi 1992; Chambolle's algorithm)."""
    from skimage.restoration import denoise_tv_chambolle

    return denoise_tv_chambolle(volume_hu, weight=max(parameters["strength"] * noise_hu, 0.1))


def bm3d(volume_hu: np.ndarray, noise_hu: float, parameters: Parameters) -> np.ndarray:
    """BM3D (Dabov et al., IEEE Trans. Image Process. 16, 2007) by its authors' package, slice by slice.

    Raises:
        BundleError: when the package is not installed: its licence excludes commercial use.
    """
    try:
        from bm3d import bm3d as denoise
    except ImportError as error:
        raise BundleError(
            "the package bm3d is not installed",
            hint="its licence is for non-commercial use: pip install bm3d if that is yours",
        ) from error
    strength = max(parameters["strength"] * noise_hu, 0.1)
    return _by_slice(lambda image: denoise(image.astype(np.float64), strength), volume_hu)


FILTERS = {
    "gaussian": Filter(gaussian, "Gaussian filter within slices", ("sigma",)),
    "bilateral": Filter(bilateral, "bilateral filter within slices (scikit-image)", ("strength", "sigma")),
    "nlm3d": Filter(nlm3d, "3D non-local means (scikit-image)", ("strength",)),
    "tv3d": Filter(tv3d, "3D total variation (scikit-image)", ("strength",)),
    "bm3d": Filter(bm3d, "BM3D slice by slice (bm3d 4, non-commercial licence)", ("strength",)),
}


def classical_method(name: str, parameters: Parameters, *, chosen: str = "as configured") -> Method:
    """Return a filter with its parameters as a row of the table.

    Args:
        name: of FILTERS.
        parameters: by name; strengths in units of the input's noise level.
        chosen: how the parameters were chosen, for the definition.

    Raises:
        BundleError: for an unknown filter or parameter, or a missing one.
    """
    if name not in FILTERS:
        raise BundleError(f"baseline '{name}' is unknown", hint=f"use some of {', '.join(FILTERS)}")
    chosen_filter = FILTERS[name]
    if set(parameters) != set(chosen_filter.parameters):
        raise BundleError(
            f"baseline '{name}' has the parameters {', '.join(chosen_filter.parameters)}, not {', '.join(parameters)}"
        )

    def restore(problem: Problem) -> np.ndarray:
        return chosen_filter.function(problem.degraded_hu, problem.noise_hu, parameters).astype(np.float32)

    values = ", ".join(f"{key} {value:g}" for key, value in parameters.items())
    definition = f"{chosen_filter.definition}; {values} ({chosen})"
    return Method(name, "baseline", definition, restore, parameters=lambda _: parameters)


def expand(grid: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    """All combinations of a parameter grid."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def _by_slice(function: Callable[[np.ndarray], np.ndarray], volume_hu: np.ndarray) -> np.ndarray:
    slices = [function(np.ascontiguousarray(volume_hu[:, :, k])) for k in range(volume_hu.shape[2])]
    return np.stack(slices, axis=2)
