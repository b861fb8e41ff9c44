"""Trained baselines as rows of the table: their weights, applied to whole slices."""

from pathlib import Path

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer

from bundle.errors import BundleError
from bundle.evaluation.interpolation import consistent
from bundle.evaluation.methods import Method, Problem, missing
from bundle.evaluation.networks import DEFINITIONS, build_baseline
from bundle.networks.precision import Precision
from bundle.networks.weights import load_weights

_SLICES = 16  # of a window; networks in 3D see one voxel beyond per layer


def trained_method(
    name: str,
    weights_file: str | Path | None,
    *,
    precision: Precision,
    device: torch.device,
    data_consistency: bool = False,
) -> Method:
    """Return a trained baseline as a row; a row that says why it is empty where there are no weights.

    Args:
        name: of `networks.NETWORKS`.
        weights_file: what `run baseline` wrote.
        precision: number format of the forward pass.
        device: where it runs.
        data_consistency: bring thin slices into agreement with the thick ones, as ours are.
    """
    network = build_baseline(name)
    try:
        if weights_file is None:
            raise BundleError(f"baseline '{name}' has no weights", hint="train it with: run baseline")
        digest = load_weights(network, weights_file)
    except BundleError as error:
        return missing(name, "baseline", DEFINITIONS[name], error)
    network.to(device).eval()

    def restore(problem: Problem) -> np.ndarray:
        restored = apply_network(network, problem.degraded_hu, precision=precision, device=device)
        return consistent(problem, restored) if data_consistency else restored

    kept = "; made to agree with the thick slices" if data_consistency else ""
    return Method(name, "baseline", f"{DEFINITIONS[name]}; weights {digest[:16]}{kept}", restore)


def apply_network(
    network: torch.nn.Module, volume_hu: np.ndarray, *, precision: Precision, device: torch.device
) -> np.ndarray:
    """Return restored HU (H, W, D) of a network from HU to HU, on whole slices."""
    volume = torch.from_numpy(np.ascontiguousarray(volume_hu, np.float32))[None, None].to(device)
    window = SlidingWindowInferer(
        roi_size=(*volume_hu.shape[:2], min(_SLICES, volume_hu.shape[2])), overlap=0.25, mode="gaussian"
    )

    def forward(tile: torch.Tensor) -> torch.Tensor:
        with precision.autocast():
            return network(tile).float()

    with torch.inference_mode():
        restored: torch.Tensor = window(volume, forward)  # type: ignore[assignment]
    return restored[0, 0].cpu().numpy()
