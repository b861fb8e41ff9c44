"""What is measured of a restoration: every number's unit, window, data range and mask are in METRICS."""

from collections.abc import Callable
from functools import cached_property

import numpy as np

from bundle.metrics import benchmark
from bundle.metrics.consistency import slice_noise_inconsistency
from bundle.metrics.coverage import NORMAL_COVERAGE, coverage
from bundle.metrics.edges import Edges, edge_width_mm, inner_edges, surface_edges
from bundle.metrics.image import bias_hu, psnr, rmse_hu, ssim
from bundle.metrics.masks import TISSUES_HU, body_mask, tissue_masks
from bundle.metrics.noise import noise_level, nps_distance, nps_radial
from bundle.metrics.regions import SIZE, homogeneous_regions, noise_magnitude
from bundle.metrics.residual import structure_in_residual

LIMITS_HU = (-1000.0, 1000.0)
_RANGE = LIMITS_HU[1] - LIMITS_HU[0]

# Of every slice; a series' value is the mean over its slices.
SLICE_METRICS = {
    "rmse_hu": "HU, all voxels, nothing clipped",
    "rmse_hu_body": "HU, voxels inside the target's body mask, nothing clipped",
    "psnr_1000": "dB, HU clipped to [-1000, 1000], data range 2000 HU, all voxels",
    "ssim_1000": "HU clipped to [-1000, 1000], data range 2000 HU, gaussian window sigma 1.5",
    **{
        f"{kind}_{name}": f"{unit}window {centre:.0f}/{width:.0f} HU, data range 1, as ldct-benchmark"
        for name, (centre, width) in benchmark.WINDOWS.items()
        for kind, unit in (("psnr", "dB, "), ("ssim", "7 x 7 equal weights, "))
    },
    "vif": "HU clipped to [-1024, 1900], noise variance 2, the target as reference",
    "vif_benchmark": "the same with the restoration as reference, which is how ldct-benchmark calls it",
}
# Of a whole series.
SERIES_METRICS = {
    **{f"bias_{name}_hu": f"HU, mean of restoration minus target in {name}" for name in TISSUES_HU},
    "noise_hu": "HU, standard deviation in homogeneous squares of soft tissue of 32 pixels, detrended",
    "noise_ratio": "noise_hu divided by the target's",
    "nps_distance": "mean |log10| of the noise power spectra's ratio to the target's, in the same squares",
    "edge_surface_mm": "mm, 10-90 % width of the mean profile through the skin",
    "edge_surface_percent": "% wider than the target's; negative is sharper",
    "edge_inner_mm": "mm, 10-90 % width of edges above 150 HU inside the body (vessels, bone)",
    "edge_inner_percent": "% wider than the target's; negative is sharper",
    "slice_noise_inconsistency": "change of the noise level from slice to slice over its mean",
    "residual_structure": "share of the anatomy's detail that input minus restoration carries",
    **{
        f"coverage_{k}_percent": f"% of the body's voxels whose target lies within {k} of the method's own deviations; "
        f"{100 * NORMAL_COVERAGE[k]:.1f} for a normal variable"
        for k in (1, 2)
    },
}
METRICS = {**SLICE_METRICS, **SERIES_METRICS}


class Target:
    """A target with what is found on it once: masks, homogeneous squares, edges; measures restorations against it.

    Args:
        target_hu: HU (H, W, D).
        spacing_mm: along H, W and D.
    """

    def __init__(self, target_hu: np.ndarray, *, spacing_mm: tuple[float, float, float]) -> None:
        self.hu = target_hu
        self.spacing_mm = spacing_mm
        self.problems: dict[str, str] = {}

    @cached_property
    def body(self) -> np.ndarray:
        """Body mask (H, W, D)."""
        return body_mask(self.hu)

    @cached_property
    def tissues(self) -> dict[str, np.ndarray]:
        """Masks of air, gas, lung, fat, soft tissue and bone."""
        return tissue_masks(self.hu)

    @cached_property
    def squares(self) -> list[tuple[int, int, int]]:
        """Centres of homogeneous squares of soft tissue."""
        return homogeneous_regions(self.hu, self.tissues["soft"])

    def spectrum(self, volume_hu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Frequencies and radial noise power spectrum in the homogeneous squares."""
        return nps_radial(volume_hu, spacing_mm=self.spacing_mm, centres=self.squares, size=SIZE)

    def slice_values(self, volume_hu: np.ndarray) -> dict[str, np.ndarray]:
        """SLICE_METRICS of a restoration, each (D,); nan where a slice has nothing to measure."""
        slices = [self._one_slice(volume_hu[:, :, k], k) for k in range(self.hu.shape[2])]
        return {name: np.array([values[name] for values in slices]) for name in SLICE_METRICS}

    def series_values(
        self, volume_hu: np.ndarray, degraded_hu: np.ndarray, deviation_hu: np.ndarray | None = None
    ) -> dict[str, float]:
        """SERIES_METRICS of a restoration; what cannot be measured is nan and named in `problems`.

        Without `deviation_hu` there is no coverage: nan, and no problem.
        """
        values = {
            f"bias_{name}_hu": self._try(f"bias_{name}_hu", lambda m=mask: bias_hu(volume_hu, self.hu, m))  # type: ignore
            for name, mask in self.tissues.items()
        }
        own = self._of_target
        values["noise_hu"] = self._try("noise_hu", lambda: noise_magnitude(volume_hu, self.squares))
        values["noise_ratio"] = values["noise_hu"] / own["noise_hu"]
        values["nps_distance"] = self._try("nps_distance", lambda: self._nps_distance(volume_hu))
        for name, edges in self._edges.items():
            width = self._try(f"edge_{name}_mm", lambda e=edges: edge_width_mm(volume_hu, e))  # type: ignore[misc]
            values[f"edge_{name}_mm"] = width
            values[f"edge_{name}_percent"] = 100 * (width / own[f"edge_{name}_mm"] - 1)
        values["slice_noise_inconsistency"] = self._try(
            "slice_noise_inconsistency", lambda: slice_noise_inconsistency(noise_level(volume_hu))
        )
        values["residual_structure"] = self._try(
            "residual_structure", lambda: structure_in_residual(degraded_hu - volume_hu, self.hu, self.body)
        )
        for k in (1, 2):
            values[f"coverage_{k}_percent"] = self._coverage(volume_hu, deviation_hu, k)
        assert set(values) == set(SERIES_METRICS)
        return {name: values[name] for name in SERIES_METRICS}

    def _coverage(self, volume_hu: np.ndarray, deviation_hu: np.ndarray | None, k: int) -> float:
        if deviation_hu is None:
            return float("nan")
        error = volume_hu - self.hu
        return self._try(f"coverage_{k}_percent", lambda: 100 * coverage(error, deviation_hu, k, self.body))

    @cached_property
    def _edges(self) -> dict[str, Edges]:
        return {
            "surface": surface_edges(self.hu, self.body, spacing_mm=self.spacing_mm),
            "inner": inner_edges(self.hu, self.body, spacing_mm=self.spacing_mm),
        }

    @cached_property
    def _of_target(self) -> dict[str, float]:
        values = {"noise_hu": self._try("noise_hu", lambda: noise_magnitude(self.hu, self.squares))}
        for name, edges in self._edges.items():
            values[f"edge_{name}_mm"] = self._try(f"edge_{name}_mm", lambda e=edges: edge_width_mm(self.hu, e))  # type: ignore
        return values

    @cached_property
    def _own_spectrum(self) -> np.ndarray:
        return self.spectrum(self.hu)[1]

    def _nps_distance(self, volume_hu: np.ndarray) -> float:
        return nps_distance(self.spectrum(volume_hu)[1], self._own_spectrum)

    def _one_slice(self, image: np.ndarray, k: int) -> dict[str, float]:
        target, body = self.hu[:, :, k], self.body[:, :, k]
        image, target = np.ascontiguousarray(image), np.ascontiguousarray(target)
        clipped, clipped_target = np.clip(image, *LIMITS_HU), np.clip(target, *LIMITS_HU)
        values = {
            "rmse_hu": rmse_hu(image, target),
            "rmse_hu_body": self._try("rmse_hu_body", lambda: rmse_hu(image, target, body)),
            "psnr_1000": psnr(clipped, clipped_target, data_range=_RANGE),
            "ssim_1000": self._try("ssim_1000", lambda: ssim(clipped, clipped_target, data_range=_RANGE)),
        }
        for name, window in benchmark.WINDOWS.items():
            if benchmark.window_is_empty(target, window):
                self.problems[f"psnr_{name}"] = (
                    f"a slice has no voxel inside the window {window[0]:.0f}/{window[1]:.0f}"
                )
                values[f"psnr_{name}"] = values[f"ssim_{name}"] = float("nan")
            else:
                values[f"psnr_{name}"] = benchmark.window_psnr(image, target, window)
                values[f"ssim_{name}"] = self._try(
                    f"ssim_{name}",
                    lambda w=window: benchmark.window_ssim(image, target, w),  # type: ignore[misc]
                )
        for name, function in (("vif", benchmark.fidelity), ("vif_benchmark", benchmark.benchmark_vif)):
            values[name] = self._try(name, lambda f=function: f(image, target))  # type: ignore[misc]
        return values

    def _try(self, name: str, measure: Callable[[], float]) -> float:
        """A measurement, or nan and a line in `problems` when the data do not allow it."""
        try:
            return measure()
        except ValueError as error:
            self.problems[name] = str(error)
            return float("nan")
