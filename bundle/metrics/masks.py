"""Where to measure: the body and, inside it, tissues away from their edges. Volumes are HU, (H, W, D).

A mask may come back empty (a head has no lung): measuring functions refuse it with a ValueError.
"""

import numpy as np
from scipy import ndimage

BODY_HU = -500.0
OPENING_PIXELS = 3  # removes shells of tables, clothes and tubes; the skin is thicker
SMOOTHING_PIXELS = 1.5
EROSION_PIXELS = 2

# Lower and upper HU. Gaps between classes keep partial volume out.
TISSUES_HU = {
    "air": (-1100.0, -950.0),  # outside the body
    "gas": (-1100.0, -950.0),  # inside: windpipe, stomach, bowel
    "lung": (-950.0, -650.0),
    "fat": (-140.0, -60.0),
    "soft": (0.0, 120.0),
    "bone": (250.0, 2500.0),
}

_CROSS = ndimage.generate_binary_structure(2, 1)


def body_mask(volume_hu: np.ndarray) -> np.ndarray:
    """The patient without table, bool (H, W, D).

    Above -500 HU, opened in-plane (which cuts thin tables off), the largest component of the volume, its holes
    (lungs, bowel gas) filled slice by slice. Opening comes before filling: a hollow table would become solid.
    Arms or legs that touch the rest nowhere are left out. All False when nothing is above -500 HU.
    """
    mask = np.empty(volume_hu.shape, bool)
    for k in range(volume_hu.shape[2]):
        above = np.ascontiguousarray(volume_hu[:, :, k]) > BODY_HU
        mask[:, :, k] = _open(above)
    mask = _largest_component(mask)
    for k in range(volume_hu.shape[2]):
        mask[:, :, k] = _without_holes(np.ascontiguousarray(mask[:, :, k]))
    return mask


def tissue_masks(volume_hu: np.ndarray) -> dict[str, np.ndarray]:
    """Homogeneous parts of air (outside the body), gas (inside), lung, fat, soft tissue and bone, bool (H, W, D).

    Classes are read from a copy smoothed in-plane, so that noise does not choose its own voxels (a class picked
    from noisy values has biased noise), then eroded in-plane to keep clear of edges. Give the reference, not
    the restoration. Each may be empty.
    """
    body = body_mask(volume_hu)
    masks = {name: np.zeros(volume_hu.shape, bool) for name in TISSUES_HU}
    for k in range(volume_hu.shape[2]):
        smooth = ndimage.gaussian_filter(np.asarray(volume_hu[:, :, k], np.float32), SMOOTHING_PIXELS)
        inside = np.ascontiguousarray(body[:, :, k])
        for name, (lower, upper) in TISSUES_HU.items():
            region = (smooth >= lower) & (smooth <= upper) & (~inside if name == "air" else inside)
            masks[name][:, :, k] = _erode(region, EROSION_PIXELS)
    return masks


def _open(mask: np.ndarray) -> np.ndarray:
    eroded = _erode(mask, OPENING_PIXELS)
    return ndimage.binary_dilation(eroded, _CROSS, iterations=OPENING_PIXELS)


def _erode(mask: np.ndarray, pixels: int) -> np.ndarray:
    # What lies beyond the image is taken as more of the same: a body cut by the field of view keeps its edge.
    return ndimage.binary_erosion(mask, _CROSS, iterations=pixels, border_value=1)


def _largest_component(mask: np.ndarray) -> np.ndarray:
    labels, count = ndimage.label(mask)
    if count == 0:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax()


def _without_holes(mask: np.ndarray) -> np.ndarray:
    """Fill what the border of the slice cannot reach (many times faster than ndimage.binary_fill_holes)."""
    labels, count = ndimage.label(~mask)
    reached = np.zeros(count + 1, bool)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        reached[edge] = True
    reached[0] = False
    return ~reached[labels]
