"""Edge widths of discs whose blur is known."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import norm

from bundle.metrics.edges import edge_width_mm, inner_edges, rise_width, surface_edges
from bundle.metrics.masks import body_mask

SPACING = (0.7, 0.7, 2.0)
TEN_NINETY = 2 * norm.ppf(0.9)  # of a step blurred by a Gaussian of sigma 1


def body(sigma_mm: float, *, noise: float = 0.0, size=224, slices=4) -> np.ndarray:
    """A round body in air with round bright vessels far apart."""
    fine = 4
    rows, columns = (np.mgrid[: size * fine, : size * fine] + 0.5) / fine - size / 2
    hu = np.where(np.hypot(rows, columns) < 90.3, 0.0, -1000.0)
    for angle in np.arange(5) * 1.3:
        hu[np.hypot(rows - 45 * np.cos(angle), columns - 45 * np.sin(angle)) < 12.2] = 400
    hu = hu.reshape(size, fine, size, fine).mean(axis=(1, 3))
    blurred = gaussian_filter(hu, sigma_mm / SPACING[0])
    rng = np.random.default_rng(1)
    return (blurred[:, :, None] + rng.normal(0, noise, (size, size, slices))).astype(np.float32)


@pytest.fixture(scope="module")
def target():
    return body(0.8, noise=15)


@pytest.mark.parametrize("find", [surface_edges, inner_edges])
def test_the_width_is_that_of_the_blur(find, target):
    edges = find(target, body_mask(target), spacing_mm=SPACING)
    assert len(edges.points) > 200
    pixel = SPACING[0] ** 2 / 12  # a pixel is an average over its square
    for sigma in (0.8, 1.1):
        width = edge_width_mm(body(sigma, noise=15), edges)
        assert width == pytest.approx(TEN_NINETY * np.sqrt(sigma**2 + pixel), rel=0.06)


@pytest.mark.parametrize("find", [surface_edges, inner_edges])
def test_noise_does_not_widen_and_smoothing_does(find, target):
    edges = find(target, body_mask(target), spacing_mm=SPACING)
    own = edge_width_mm(target, edges)
    noisy = target + np.random.default_rng(7).normal(0, 40, target.shape)
    assert edge_width_mm(noisy, edges) == pytest.approx(own, rel=0.04)
    smooth = gaussian_filter(target, (1.0, 1.0, 0))
    assert edge_width_mm(smooth, edges) > 1.2 * own


def test_profiles_of_known_width():
    x = np.arange(-4, 4.05, 0.1)
    assert rise_width(x, norm.cdf(x)) == pytest.approx(TEN_NINETY, abs=0.01)
    assert rise_width(x, 300 * norm.cdf(x / 0.5) - 70) == pytest.approx(TEN_NINETY / 2, abs=0.01)


def test_nothing_to_measure_is_named():
    air = np.full((64, 64, 2), -1000, np.float32)
    edges = surface_edges(air, body_mask(air), spacing_mm=SPACING)
    with pytest.raises(ValueError, match="too few"):
        edge_width_mm(air, edges)
