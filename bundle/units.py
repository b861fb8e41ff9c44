"""HU <-> network units: the only place that knows the numbers.

Volumes are HU; tensors are (B, C, H, W, D) with D = slices. `LinearWindow` is the default and loses nothing:
it scales and shifts but never clips, so HU outside the window survive. `ClinicalWindows` gives the three
channels a radiologist would look at (lung, soft tissue, bone); it clips by design, and its inverse is exact
inside the union of its windows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

AIR_HU = -1000.0
WATER_HU = 0.0

# Centre and width in HU, as the field's viewers and benchmarks define them.
LUNG_WINDOW = (-600.0, 1500.0)
SOFT_TISSUE_WINDOW = (50.0, 400.0)
BONE_WINDOW = (500.0, 2000.0)


def window_limits(window: tuple[float, float]) -> tuple[float, float]:
    """Lower and upper HU of a window given as (centre, width)."""
    centre, width = window
    return centre - width / 2, centre + width / 2


class Units(Protocol):
    """A pair of functions between HU (B, 1, H, W, D) and network units (B, channels, H, W, D)."""

    @property
    def channels(self) -> int:
        """Number of channels in network units."""

    @property
    def hu_per_unit(self) -> float:
        """HU that one network unit of the single-channel output stands for."""

    def from_hu(self, volume_hu: torch.Tensor) -> torch.Tensor:
        """HU (B, 1, ...) to network units (B, channels, ...)."""

    def to_hu(self, x: torch.Tensor) -> torch.Tensor:
        """Network units (B, channels, ...) to HU (B, 1, ...)."""


@dataclass(frozen=True)
class LinearWindow:
    """[lower, upper] HU to [-1, 1], linearly and without clipping; exact inverse for every finite HU."""

    lower: float = -1000.0
    upper: float = 1000.0

    @property
    def channels(self) -> int:
        """One channel."""
        return 1

    @property
    def hu_per_unit(self) -> float:
        """Half the window's width."""
        return (self.upper - self.lower) / 2

    @property
    def _centre(self) -> float:
        return (self.upper + self.lower) / 2

    def from_hu(self, volume_hu: torch.Tensor) -> torch.Tensor:
        """HU (B, 1, ...) to network units of the same shape."""
        return (volume_hu - self._centre) / self.hu_per_unit

    def to_hu(self, x: torch.Tensor) -> torch.Tensor:
        """Network units (B, 1, ...) to HU of the same shape."""
        return x * self.hu_per_unit + self._centre


@dataclass(frozen=True)
class ClinicalWindows:
    """Three clinical windows as three channels in [-1, 1].

    The inverse takes, per voxel, the narrowest window that is not saturated there, because it carries the
    finest steps; where all are saturated it gives the nearest end of the union. Channels that disagree are
    therefore resolved in favour of the narrowest unsaturated window.
    """

    windows: Sequence[tuple[float, float]] = (LUNG_WINDOW, SOFT_TISSUE_WINDOW, BONE_WINDOW)

    @property
    def channels(self) -> int:
        """One channel per window."""
        return len(self.windows)

    @property
    def hu_per_unit(self) -> float:
        """The single-channel output of a three-window network is in units of 1000 HU."""
        return LinearWindow().hu_per_unit

    def from_hu(self, volume_hu: torch.Tensor) -> torch.Tensor:
        """HU (B, 1, ...) to (B, 3, ...), each channel clipped to [-1, 1]."""
        return torch.cat([self._forward(volume_hu, window) for window in self.windows], dim=1)

    def to_hu(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, ...) in [-1, 1] to HU (B, 1, ...)."""
        limits = [window_limits(window) for window in self.windows]
        union = LinearWindow(min(low for low, _ in limits), max(high for _, high in limits))
        # Start from saturation: the lower end of the union where every channel is -1, else the upper end.
        below = (x <= -1).all(dim=1, keepdim=True)
        volume_hu = torch.where(below, union.lower, union.upper).to(x.dtype)
        for index in sorted(range(self.channels), key=lambda i: -self.windows[i][1]):  # narrowest last, wins
            channel = x[:, index : index + 1]
            inside = channel.abs() < 1
            volume_hu = torch.where(inside, LinearWindow(*limits[index]).to_hu(channel), volume_hu)
        return torch.where(x.isnan().any(dim=1, keepdim=True), torch.nan, volume_hu)  # never bone out of nothing

    @staticmethod
    def _forward(volume_hu: torch.Tensor, window: tuple[float, float]) -> torch.Tensor:
        return LinearWindow(*window_limits(window)).from_hu(volume_hu).clamp(-1.0, 1.0)
