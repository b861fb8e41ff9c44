"""Validation during training: slabs through the real sampler, beside the input and what the autoencoder allows.

Each process takes its share of the slabs; the means are over all slabs, in their order, so that they do not
depend on the number of processes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced
from monai.engines import IterationEvents
from monai.metrics import PSNRMetric, RMSEMetric, SSIMMetric

from bundle.data.samplers import in_order
from bundle.restoration.inferer import RestorationInferer
from bundle.training import distributed

# Metrics are taken on [-1000, 1000] HU, as most of the field does; the range is in every metric's name.
LIMITS_HU = (-1000.0, 1000.0)
_RANGE_HU = LIMITS_HU[1] - LIMITS_HU[0]

# What is compared with the label: the restoration, the input, and decode(encode(label)), the ceiling.
COMPARED = {"": "pred", "_input": "image", "_autoencoder": "reconstruction"}


def prepare_slab(
    batch: Mapping[str, torch.Tensor], device: torch.device, non_blocking: bool = False, **_: Any
) -> tuple[torch.Tensor, torch.Tensor, tuple[()], dict[str, torch.Tensor]]:
    """Split a slab into what MONAI's evaluator wants: image, label, and the inferer's keyword arguments."""
    moved = {key: value.to(device, non_blocking=non_blocking) for key, value in batch.items()}
    conditions = {"spacing_mm": moved["spacing_mm"], "noise_level": moved["noise_level"]}
    return moved["image"], moved["label"], (), conditions


class Ceiling:
    """Handler that adds decode(encode(label)) to the evaluator's output: no restoration in latents gets past it.

    Args:
        inferer: what the restoration uses; gives tiles and precision.
    """

    def __init__(self, inferer: RestorationInferer) -> None:
        self.inferer = inferer

    def attach(self, evaluator: Engine) -> None:
        """Register with the evaluator."""
        evaluator.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._add)

    def _add(self, evaluator: Any) -> None:
        output = evaluator.state.output
        output["reconstruction"] = self.inferer.reconstruct(output["label"], evaluator.network)


class SlabMetric(Metric):
    """Mean over all slabs of all processes of a function of a slab and its label.

    Args:
        measure: function of two HU tensors (1, 1, H, W, D), clipped to LIMITS_HU.
        key: what is compared with the label.
        slabs: number of slabs over all processes.
    """

    required_output_keys = None

    def __init__(self, measure: Callable[[torch.Tensor, torch.Tensor], float], *, key: str, slabs: int) -> None:
        self.measure, self.key, self.slabs = measure, key, slabs
        self._values: list[float] = []
        super().__init__()

    @reinit__is_reduced
    def reset(self) -> None:
        """Forget everything: a validation begins."""
        self._values = []

    @reinit__is_reduced
    def update(self, output: Sequence[Mapping[str, torch.Tensor]]) -> None:
        """Measure one batch, decollated as MONAI's evaluator does."""
        for item in output:
            pair = (_clipped(item[self.key])[None], _clipped(item["label"])[None])
            self._values.append(self.measure(*pair))

    def compute(self) -> float:
        """The mean.

        Raises:
            RuntimeError: when there were no slabs.
        """
        values = in_order(distributed.gathered(self._values), self.slabs)
        if not values:
            raise RuntimeError("validation had no slabs")
        return float(sum(values) / len(values))


def key_metric(slabs: int) -> dict[str, Metric]:
    """PSNR of the restoration over [-1000, 1000] HU: what picks the best checkpoint."""
    return {"val_psnr_1000": SlabMetric(psnr, key="pred", slabs=slabs)}


def further_metrics(slabs: int) -> dict[str, Metric]:
    """SSIM and RMSE in HU of the restoration, and all three of the input and of the autoencoder's ceiling."""
    measures = {"val_psnr_1000": psnr, "val_ssim_1000": ssim, "val_rmse_1000_hu": rmse_hu}
    return {
        name + suffix: SlabMetric(measure, key=key, slabs=slabs)
        for suffix, key in COMPARED.items()
        for name, measure in measures.items()
        if (name, suffix) != ("val_psnr_1000", "")
    }


def psnr(image_hu: torch.Tensor, label_hu: torch.Tensor) -> float:
    """PSNR in dB, data range 2000 HU."""
    metric: Any = PSNRMetric(max_val=_RANGE_HU)
    return float(metric(image_hu, label_hu))


def ssim(image_hu: torch.Tensor, label_hu: torch.Tensor) -> float:
    """SSIM per slice, window 11 and sigma 1.5, data range 2000 HU; the mean over slices."""
    # As skimage's gaussian variant; 3D windows would need 11 slices.
    metric: Any = SSIMMetric(spatial_dims=2, data_range=_RANGE_HU)
    return float(metric(_slices(image_hu), _slices(label_hu)).mean())


def rmse_hu(image_hu: torch.Tensor, label_hu: torch.Tensor) -> float:
    """Root mean square error in HU."""
    metric: Any = RMSEMetric()
    return float(metric(image_hu, label_hu))


def _slices(volume_hu: torch.Tensor) -> torch.Tensor:
    """(1, 1, H, W, D) as (D, 1, H, W)."""
    return volume_hu[0].movedim(-1, 0)


def _clipped(volume_hu: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(volume_hu).detach().float().clamp(*LIMITS_HU)
