"""Validation during training: slabs through the real sampler, PSNR and SSIM beside the input's."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ignite.metrics import Metric
from monai.handlers import IgniteMetricHandler, PeakSignalToNoiseRatio
from monai.metrics import SSIMMetric

# Metrics are taken on [-1000, 1000] HU, as most of the field does; the range is in every metric's name.
LIMITS_HU = (-1000.0, 1000.0)
_RANGE_HU = LIMITS_HU[1] - LIMITS_HU[0]


def prepare_slab(
    batch: Mapping[str, torch.Tensor], device: torch.device, non_blocking: bool = False, **_: Any
) -> tuple[torch.Tensor, torch.Tensor, tuple[()], dict[str, torch.Tensor]]:
    """Split a slab into what MONAI's evaluator wants: image, label, and the inferer's keyword arguments."""
    moved = {key: value.to(device, non_blocking=non_blocking) for key, value in batch.items()}
    conditions = {"spacing_mm": moved["spacing_mm"], "noise_level": moved["noise_level"]}
    return moved["image"], moved["label"], (), conditions


def key_metric() -> dict[str, Metric]:
    """PSNR of the restoration over [-1000, 1000] HU: what picks the best checkpoint."""
    return {"val_psnr_1000": PeakSignalToNoiseRatio(max_val=_RANGE_HU, output_transform=_pair("pred"))}


def further_metrics() -> dict[str, Metric]:
    """PSNR of the input, and SSIM of restoration and input, over [-1000, 1000] HU."""
    return {
        "val_psnr_1000_input": PeakSignalToNoiseRatio(max_val=_RANGE_HU, output_transform=_pair("image")),
        "val_ssim_1000": _ssim("pred"),
        "val_ssim_1000_input": _ssim("image"),
    }


def _ssim(key: str) -> IgniteMetricHandler:
    # Per slice, window 11 and sigma 1.5, as skimage's gaussian variant; 3D windows would need 11 slices.
    metric = SSIMMetric(spatial_dims=2, data_range=_RANGE_HU)

    def slices(output: Sequence[Mapping[str, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
        pairs = [(_clipped(item[key]).movedim(-1, 0), _clipped(item["label"]).movedim(-1, 0)) for item in output]
        return torch.cat([p for p, _ in pairs]), torch.cat([q for _, q in pairs])

    return IgniteMetricHandler(metric_fn=metric, output_transform=slices)


def _pair(key: str) -> Any:
    def pair(output: Sequence[Mapping[str, torch.Tensor]]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        return [_clipped(item[key]) for item in output], [_clipped(item["label"]) for item in output]

    return pair


def _clipped(volume_hu: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(volume_hu).float().clamp(*LIMITS_HU)
