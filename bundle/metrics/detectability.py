"""Low-contrast detectability: a channelized Hotelling observer (Myers and Barrett, JOSA A 4, 1987).

The channels are dense differences of Gaussians (Abbey and Barrett, JOSA A 18, 2001), ten rotationally symmetric
bands of the eye's kind.
"""

import numpy as np

CHANNELS = 10
FIRST_SIGMA = 0.005  # cycles per pixel
RATIO = 1.4
BAND = 1.67


def detectability(present: np.ndarray, absent: np.ndarray) -> float:
    """Detectability index d' of a known disc: the separation of the observer's two distributions.

    The observer's template is learnt on one half of the regions and tested on the other, both ways round, so a
    disc that cannot be seen gives 0 within statistics and not the positive value of a fit.

    Args:
        present: regions with the disc in their middle (N, S, S).
        absent: regions without (M, S, S).

    Raises:
        ValueError: with fewer than four times as many regions of a kind as channels.
    """
    least = 4 * CHANNELS
    if min(len(present), len(absent)) < least:
        raise ValueError(f"{least} regions of each kind are needed, not {len(present)} and {len(absent)}")
    channels = channel_matrix(present.shape[1])
    seen, empty = (_responses(regions, channels) for regions in (present, absent))
    return 0.5 * (_separation(seen, empty, 0) + _separation(seen, empty, 1))


def channel_matrix(size: int) -> np.ndarray:
    """Ten channels (10, size * size) in the image domain, each of unit norm."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size), indexing="ij"))
    channels = []
    for j in range(1, CHANNELS + 1):
        sigma = FIRST_SIGMA * RATIO**j
        band = np.exp(-0.5 * (frequency / (BAND * sigma)) ** 2) - np.exp(-0.5 * (frequency / sigma) ** 2)
        image = np.fft.fftshift(np.fft.ifft2(band).real)
        channels.append(image.ravel() / np.linalg.norm(image))
    return np.stack(channels)


def _responses(regions: np.ndarray, channels: np.ndarray) -> np.ndarray:
    return regions.reshape(len(regions), -1).astype(np.float64) @ channels.T


def _separation(seen: np.ndarray, empty: np.ndarray, tested: int) -> float:
    """Signed d' on every second region, with the template learnt on the others."""
    learn_seen, learn_empty = seen[1 - tested :: 2], empty[1 - tested :: 2]
    covariance = 0.5 * (np.cov(learn_seen.T) + np.cov(learn_empty.T))
    template = np.linalg.pinv(covariance, hermitian=True) @ (learn_seen.mean(0) - learn_empty.mean(0))
    with_disc, without = seen[tested::2] @ template, empty[tested::2] @ template
    spread = np.sqrt(0.5 * (with_disc.var(ddof=1) + without.var(ddof=1)))
    return float((with_disc.mean() - without.mean()) / spread) if spread > 0 else 0.0
