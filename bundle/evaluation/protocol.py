"""The comparison: every method restores the same degraded series, every metric has its range in its name."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from bundle.configuration import set_exit_code
from bundle.data.sources import Case
from bundle.errors import BundleError, ExitCode
from bundle.evaluation.tables import METRICS, Row, read_training_keys, write_tables
from bundle.files import require_writable
from bundle.metrics.image import psnr, rmse_hu, ssim
from bundle.metrics.masks import body_mask
from bundle.networks.restorer import Restorer
from bundle.restoration.evaluator import SeriesEvaluator
from bundle.restoration.region import apply_difference
from bundle.restoration.worklist import SeriesDataset

LIMITS_HU = (-1000.0, 1000.0)


def measure(image_hu: np.ndarray, target_hu: np.ndarray, body: np.ndarray) -> dict[str, float]:
    """Return METRICS of an image against its target, both HU (H, W, D).

    Args:
        image_hu: what a method made.
        target_hu: the full-dose series.
        body: mask (H, W, D) of the patient.
    """
    clipped, target = (np.clip(volume, *LIMITS_HU) for volume in (image_hu, target_hu))
    data_range = LIMITS_HU[1] - LIMITS_HU[0]
    values = {
        "psnr_1000": psnr(clipped, target, data_range=data_range),
        "ssim_1000": ssim(clipped, target, data_range=data_range),
        "rmse_hu": rmse_hu(image_hu, target_hu),
        "rmse_hu_body": rmse_hu(image_hu, target_hu, body) if body.any() else float("nan"),
    }
    assert list(values) == list(METRICS)
    return values


class ComparisonEvaluator(SeriesEvaluator):
    """Compares methods on degraded series and writes metrics.json, metrics.csv and a picture of each series.

    Args:
        dataset: items with 'image' (degraded) and 'label' (target), MetaTensors (1, H, W, D) HU.
        folder: the output folder.
        header: what the tables say about degradation, weights and settings.
        sampled_steps: further rows: one draw with so many steps.
        training_file: the training run's data.json, to say which series were trained on; may be missing.
        **others: as for SeriesEvaluator.
    """

    def __init__(
        self,
        dataset: SeriesDataset,
        *,
        folder: str | Path,
        header: Mapping[str, Any],
        sampled_steps: Sequence[int] = (),
        training_file: str | Path | None = None,
        **others: Any,
    ) -> None:
        super().__init__(dataset, verb="evaluating", **others)
        self.folder = Path(folder)
        self.header = dict(header)
        self.sampled_steps = list(sampled_steps)
        self.trained_on = read_training_keys(training_file)
        self.rows: list[Row] = []
        self.failed: dict[str, str] = {}

    def run(self, global_epoch: int = 1) -> None:  # type: ignore[override] # as MONAI's Evaluator.run
        """Evaluate all series; write and print the tables.

        Raises:
            BundleError: when no series could be evaluated.
        """
        require_writable(self.folder, option="output_dir")
        super().run(global_epoch)
        if not self.rows:
            raise BundleError("no series could be evaluated: " + "; ".join(sorted(set(self.failed.values()))))
        print(write_tables(self.folder, self.rows, header=self.header, failed=self.failed))
        set_exit_code(ExitCode.PARTIAL if self.failed else ExitCode.DONE)

    def process(self, case: Case, data: Mapping[str, Any]) -> None:
        """Evaluate one series."""
        from bundle.evaluation.pictures import save_comparison

        degraded, spacing_mm = self.image_on_device(data["image"])
        target, _ = self.image_on_device(data["label"])
        target_hu = _array(target)
        body = body_mask(target_hu)
        volumes: dict[str, np.ndarray] = {}
        degraded_hu = _array(degraded)
        for name, volume in self._methods(degraded, target, spacing_mm).items():
            volumes[name] = _array(volume)
            if name not in ("input", "autoencoder"):  # what is judged is what would be delivered
                volumes[name] = apply_difference(degraded_hu, volumes[name] - degraded_hu, strength=1.0)
            trained_on = self.trained_on.get(case.key, "not trained on")
            self.rows.append(Row(case.key, name, trained_on, measure(volumes[name], target_hu, body)))
        shown = {"input": volumes["input"], "restored": volumes["restored"], "target": target_hu}
        save_comparison(self.folder / f"comparison_{case.key}.png", shown, title=f"series {case.key}")

    def fail(self, case: Case, error: BundleError) -> None:
        """Count a series that could not be evaluated."""
        self.failed[case.key] = str(error)

    def _methods(
        self, degraded: torch.Tensor, target: torch.Tensor, spacing_mm: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        network = cast(Restorer, self.network)
        results = {"input": degraded, "autoencoder": self.inferer.reconstruct(target, network)}
        results["restored"] = self.inferer(degraded, network, spacing_mm=spacing_mm)
        network.use_denoiser = False
        try:
            results["no_denoiser"] = self.inferer(degraded, network, spacing_mm=spacing_mm)
        finally:
            network.use_denoiser = True
        for steps in self.sampled_steps:
            sampler = self.inferer.with_steps(steps)
            results[f"sample_{steps}_steps"] = sampler(degraded, network, spacing_mm=spacing_mm)
        return results


def _array(volume: torch.Tensor) -> np.ndarray:
    """(1, 1, H, W, D) as a float32 array (H, W, D)."""
    return volume[0, 0].float().cpu().numpy()
