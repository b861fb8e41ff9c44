"""A phantom whose truth is known: small discs of low contrast to be detected, rods whose sharpness is followed.

A water cylinder of 200 mm with two rings of discs and two rods. The full-dose scan has noise of the low-dose
model, the poor one that and more; every method restores the poor one, and what is measured is what a reader needs, not
a distance.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bundle.degrade.low_dose import Scanner, apply_dose, unit_noise_volume
from bundle.evaluation.methods import Problem
from bundle.metrics.detectability import detectability
from bundle.metrics.transfer import frequency_at, task_transfer

KEY = "phantom"
SIZE = 256
SPACING_MM = (0.9, 0.9, 2.5)
RADIUS_MM = 100.0
DISC_MM = 2.5  # radius
DISC_HU = 15.0
DISC_SLICES = 3  # a disc is as thick as it is wide, about
RING_MM = (60.0, 82.0)
REGION = 24  # pixels of a side
ROD_MM = 9.0
RODS_HU = (100.0, 400.0)
ROD_RING_MM = 22.0
BLUR_PIXELS = 0.6  # of the scanner, in plane
FINE = 4  # sub-pixels along a row and column, so that edges are true

METRICS = {
    "detectability": "d' of a channelized Hotelling observer: discs of 5 mm, 15 HU, 7.5 mm thick",
    **{
        f"transfer{level}_{rod:.0f}_per_mm": f"1/mm, where the transfer of a {rod:.0f} HU rod falls to {level} %"
        for rod in RODS_HU
        for level in (50, 10)
    },
}


@dataclass(frozen=True)
class Phantom:
    """The phantom's truth and its scans.

    Attributes:
        problem: poor scan and full-dose scan.
        truth_hu: without noise (H, W, D).
        discs: centres (row, column) in pixels, with the phase of their slices.
        rods: centres (row, column) in pixels.
    """

    problem: Problem
    truth_hu: np.ndarray
    discs: list[tuple[float, float, int]]
    rods: list[tuple[float, float]]

    def measure(self, volume_hu: np.ndarray) -> dict[str, float]:
        """METRICS of a restoration (H, W, D) of the poor scan."""
        present, absent = self._regions(volume_hu)
        values = {"detectability": detectability(present, absent)}
        mean = volume_hu.mean(axis=2)
        for contrast, centre in zip(RODS_HU, self.rods, strict=True):
            frequencies, transfer = task_transfer(mean, centre=centre, radius_mm=ROD_MM, spacing_mm=SPACING_MM[:2])
            for level in (50, 10):
                name = f"transfer{level}_{contrast:.0f}_per_mm"
                values[name] = frequency_at(frequencies, transfer, level / 100)
        return {name: values[name] for name in METRICS}

    def _regions(self, volume_hu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        present, absent = [], []
        half = REGION // 2
        for row, column, phase in self.discs:
            top, left = round(row) - half, round(column) - half
            for k in range(volume_hu.shape[2]):
                position = (k - phase) % (2 * DISC_SLICES)
                region = volume_hu[top : top + REGION, left : left + REGION, k]
                if position == DISC_SLICES // 2:
                    present.append(region)
                elif position == DISC_SLICES + DISC_SLICES // 2:
                    absent.append(region)
        return np.stack(present), np.stack(absent)


def make_phantom(*, dose: float, seed: int, slices: int = 36) -> Phantom:
    """Draw the phantom's scans; at full dose exposure control leaves it 12 HU of noise in the middle.

    Args:
        dose: of the poor scan, as a fraction of the full one's.
        seed: of the noise.
        slices: D.
    """
    discs = _disc_places()
    rods = [((SIZE - 1) / 2 + sign * ROD_RING_MM / SPACING_MM[0], (SIZE - 1) / 2) for sign in (-1, 1)]
    truth = _truth(discs, rods, slices)
    noises = [unit_noise_volume(truth, spacing_mm=SPACING_MM, seed=seed + i, scanner=Scanner()) for i in (0, 1)]
    full = truth + sum(part.astype(np.float32) for part in noises[0])
    poor = apply_dose(full, *noises[1], dose=dose)
    problem = Problem(key=KEY, degraded_hu=poor, target_hu=full.astype(np.float32), spacing_mm=SPACING_MM)
    return Phantom(problem, truth, discs, rods)


def _disc_places() -> list[tuple[float, float, int]]:
    """Centres on whole pixels, so that all discs look alike, as many as fit side by side."""
    places: list[tuple[float, float, int]] = []
    for ring in RING_MM:
        radius = ring / SPACING_MM[0]
        count = int(2 * np.pi * radius / (REGION * 1.05))
        for number in range(count):
            angle = 2 * np.pi * number / count
            row, column = (round(SIZE / 2 + radius * f(angle)) for f in (np.sin, np.cos))
            places.append((float(row), float(column), len(places) % (2 * DISC_SLICES)))
    return places


def _truth(discs: list[tuple[float, float, int]], rods: list[tuple[float, float]], slices: int) -> np.ndarray:
    centre = (SIZE - 1) / 2
    body = 1000 * _round(centre, centre, RADIUS_MM) - 1000
    for contrast, (row, column) in zip(RODS_HU, rods, strict=True):
        body += contrast * _round(row, column, ROD_MM)
    layers = [
        sum((_round(row, column, DISC_MM) for row, column, own in discs if own == phase), np.zeros_like(body))
        for phase in range(2 * DISC_SLICES)
    ]
    volume = np.repeat(body[:, :, None], slices, axis=2)
    for k in range(slices):
        for phase, layer in enumerate(layers):
            if (k - phase) % (2 * DISC_SLICES) < DISC_SLICES:
                volume[:, :, k] += DISC_HU * layer
    return ndimage.gaussian_filter(volume, (BLUR_PIXELS, BLUR_PIXELS, 0)).astype(np.float32)


def _round(row: float, column: float, radius_mm: float) -> np.ndarray:
    """Share of each pixel (H, W) that lies within a circle."""
    rows = (np.arange(SIZE * FINE) + 0.5) / FINE - 0.5
    near = (rows[:, None] - row) ** 2 + (rows[None, :] - column) ** 2 < (radius_mm / SPACING_MM[0]) ** 2
    return near.reshape(SIZE, FINE, SIZE, FINE).mean(axis=(1, 3))
