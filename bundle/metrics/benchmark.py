"""PSNR, SSIM, VIF and RMSE as ldct-benchmark computes them (Eulig et al., Med. Phys. 51, 2024), slice by slice.

Its images are HU + 1024. PSNR and SSIM are taken after a clinical window was mapped to [0, 1] (data range 1, SSIM
of 7 x 7 equal weights), VIF and RMSE on values clipped to [0, 2924]. Arrays here are HU, one slice (H, W). Read in
its `evaluate/utils.py` and `utils/utils.py` (0.0.16), written anew here; it computes VIF in single precision.
"""

import numpy as np
from skimage.metrics import structural_similarity

from bundle.metrics.image import require_window
from bundle.metrics.vif import vif

# Centre and width in HU of the three exam types.
WINDOWS = {"chest": (-600.0, 1500.0), "abdomen": (50.0, 400.0), "neuro": (40.0, 80.0)}
CLIP_HU = (-1024.0, 1900.0)
VIF_NOISE_VARIANCE = 2.0
SSIM_WINDOW = 7  # pixels, scikit-image's default


def windowed(slice_hu: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """Map a window (centre, width) to [0, 1] as a display does (DICOM PS3.3 C.11.2.1.2.1, function LINEAR).

    The formula is made for whole numbers: the ramp is centred half a unit below the centre and 1 narrower than the
    width, which the window of 80 HU notices.
    """
    centre, width = window
    return np.clip((np.asarray(slice_hu, np.float64) - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def window_is_empty(target_hu: np.ndarray, window: tuple[float, float]) -> bool:
    """Whether no voxel of the target lies inside the window: its picture would be black and white only."""
    shown = windowed(target_hu, window)
    return not bool(np.any((shown > 0) & (shown < 1)))


def window_psnr(image_hu: np.ndarray, target_hu: np.ndarray, window: tuple[float, float]) -> float:
    """PSNR in dB of the windowed slices, data range 1; inf where they are equal."""
    error = np.mean((windowed(image_hu, window) - windowed(target_hu, window)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(1 / error))


def window_ssim(image_hu: np.ndarray, target_hu: np.ndarray, window: tuple[float, float]) -> float:
    """SSIM of the windowed slices, data range 1, as scikit-image computes it by default.

    Raises:
        ValueError: when the slices are smaller than 7 x 7.
    """
    require_window(target_hu.shape, SSIM_WINDOW)
    target, image = windowed(target_hu, window), windowed(image_hu, window)
    return float(structural_similarity(target, image, data_range=1.0, win_size=SSIM_WINDOW))


def benchmark_vif(image_hu: np.ndarray, target_hu: np.ndarray) -> float:
    """VIF as ldct-benchmark calls it, to compare with its tables.

    It hands the target to the argument `preds` of torchmetrics and the prediction to `target`, so the restored image
    is the reference. For VIF as published, the target as reference, call `fidelity`.
    """
    return fidelity(target_hu, image_hu)


def fidelity(image_hu: np.ndarray, target_hu: np.ndarray) -> float:
    """VIF of a slice with the target as reference, on HU + 1024 clipped to [0, 2924], noise variance 2."""
    image, target = (np.clip(x, *CLIP_HU) - CLIP_HU[0] for x in (image_hu, target_hu))
    return vif(target, image, noise_variance=VIF_NOISE_VARIANCE)
