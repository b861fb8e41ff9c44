"""Is a series within what the weights were made for? Measured from the image and read from the headers.

The weights' card holds, per property, the range that training and validation covered, or the values that occurred.
A property that cannot be found in a series (no header, no soft tissue) says nothing and is listed as unknown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from bundle.dicom.elements import Unusable, decimals, text
from bundle.dicom.volume import Volume
from bundle.errors import BundleError
from bundle.metrics.masks import tissue_masks
from bundle.metrics.noise import noise_level, nps_radial
from bundle.metrics.regions import homogeneous_regions
from bundle.restoration.region import touchable
from bundle.restoration.restored import SourceSlices

SAMPLED_SLICES = 8
METAL_HU = 2500.0
_LUNG_HU = (-950.0, -500.0)
_BONE_HU = 300.0
_SQUARE = 32

# Words and units of what is measured, in the order in which reasons are given.
PROPERTIES = {
    "noise_hu": ("noise", "HU"),
    "noise_frequency_per_mm": ("sharpness of the kernel (mean noise frequency)", "/mm"),
    "pixel_mm": ("pixel size", "mm"),
    "slice_mm": ("slice spacing", "mm"),
    "thickness_mm": ("slice thickness", "mm"),
    "lung_fraction": ("share of lung", ""),
    "bone_fraction": ("share of bone", ""),
    "metal_fraction": ("share of metal", ""),
    "contrast": ("contrast medium", ""),
}


# How the weights of a task are asked for.
_HOW = {"denoise": "without --slice_spacing_mm", "thin": "--slice_spacing_mm"}


@dataclass(frozen=True)
class Domain:
    """Whether a series is within the domain of the weights, and why not.

    Attributes:
        inside: False when a property is out of range; True also when nothing is known of the weights.
        known: whether the weights' card has a domain at all.
        reasons: what is out of range, in words.
        measured: the series' properties; None for those that could not be found.
        fits: of a series outside, the tasks whose weights it is within the domain of.
    """

    inside: bool
    known: bool
    reasons: tuple[str, ...]
    measured: Mapping[str, Any] = field(default_factory=dict)
    fits: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        """'yes', 'no' or 'unknown'."""
        return ("yes" if self.inside else "no") if self.known else "unknown"

    @property
    def said(self) -> str:
        """One phrase for Derivation Description."""
        return f"in the weights' domain: {self.word}" + (f" ({'; '.join(self.reasons)})" if self.reasons else "")

    @property
    def warning(self) -> str:
        """What a person is told of a series outside."""
        others = "".join(f"; within that of the weights for task '{task}' ({_HOW[task]})" for task in self.fits)
        return f"outside the weights' domain: {'; '.join(self.reasons)}{others}"

    def described(self) -> dict[str, Any]:
        """For the summary."""
        return {"reasons": list(self.reasons), "fits_tasks": list(self.fits), "measured": dict(self.measured)}


def domain_of(
    source: SourceSlices,
    ranges: Mapping[str, Any],
    *,
    objections: Sequence[str] = (),
    others: Mapping[str, Mapping[str, Any]] | None = None,
    strict: bool = False,
) -> Domain:
    """Measure a series and judge it.

    Args:
        source: the series.
        ranges: as for `judge`.
        objections: as for `judge`.
        others: task -> ranges of the weights for other tasks, for a series outside whose slice thickness is known. The
            slice spacing is no matter there: it is what these tasks differ in.
        strict: refuse what is outside, and everything where nothing is known of the weights.

    Raises:
        BundleError: under `strict`, when it is outside, or no domain is known; says why.
    """
    # Of a series brought onto thinner slices the source's: its thickness is what the weights were trained for.
    header = source.source_headers[0] if isinstance(source, Volume) else None
    domain = judge(measure(source, header), ranges, objections=objections)
    if domain.inside:
        if strict and not domain.known:
            raise BundleError(
                "the weights' domain is unknown: no card lies beside them", hint="or set --strict_domain false"
            )
        return domain
    elsewhere = {name: value for name, value in domain.measured.items() if name != "slice_mm"}
    if domain.measured["thickness_mm"] is not None:
        fits = tuple(task for task, known in (others or {}).items() if judge(elsewhere, known).inside)
        domain = replace(domain, fits=fits)
    if strict:
        raise BundleError(domain.warning, hint="or set --strict_domain false")
    return domain


def judge(measured: Mapping[str, Any], ranges: Mapping[str, Any], *, objections: Sequence[str] = ()) -> Domain:
    """Hold a series' properties against a card's domain.

    Args:
        measured: from `measure`.
        ranges: property -> [lowest, highest], or a list of words for 'contrast'.
        objections: what else puts it outside the domain, in words.
    """
    reasons = list(objections)
    for name, (words, unit) in PROPERTIES.items():
        value, known = measured.get(name), ranges.get(name)
        if value is None or known is None:
            continue
        if isinstance(value, str):
            if value not in known:
                reasons.append(f"{words}: {value}, trained with {' or '.join(known)}")
        elif not known[0] <= value <= known[1]:
            bound = f"below {known[0]:.3g}" if value < known[0] else f"above {known[1]:.3g}"
            reasons.append(f"{words} {value:.3g} {unit} is {bound}".replace("  ", " "))
    return Domain(not reasons, bool(ranges or objections), tuple(reasons), dict(measured))


def measure(source: SourceSlices, header: Dataset | None = None) -> dict[str, Any]:
    """Properties of a series, from at most SAMPLED_SLICES of its slices and one header.

    Args:
        source: the series.
        header: of one of its slices; None for a volume that has none.
    """
    chosen = np.unique(np.linspace(0, source.shape[2] - 1, SAMPLED_SLICES).round().astype(int))
    hu = np.stack([source.slice_hu(int(k)) for k in chosen], axis=2)
    padding = np.stack([source.slice_padding(int(k)) for k in chosen], axis=2)
    body = touchable(hu, padding)
    inside = hu[body]
    found: dict[str, Any] = {
        "noise_hu": round(float(np.median(noise_level(hu))), 2),
        "noise_frequency_per_mm": _noise_frequency(hu, source.spacing_mm),
        "pixel_mm": round(float(np.mean(source.spacing_mm[:2])), 4),
        "slice_mm": round(float(source.spacing_mm[2]), 4) if source.shape[2] > 1 else None,
        "thickness_mm": _thickness(header),
        "lung_fraction": None,
        "bone_fraction": None,
        # Metal may lie beyond the hard limits and is then no part of `body`.
        "metal_fraction": round(float(np.mean((hu > METAL_HU) & ~padding)), 6),
        "contrast": None if header is None else "yes" if text(header, "ContrastBolusAgent") else "no or not said",
    }
    if inside.size:
        found["lung_fraction"] = round(float(np.mean((inside > _LUNG_HU[0]) & (inside < _LUNG_HU[1]))), 4)
        found["bone_fraction"] = round(float(np.mean(inside > _BONE_HU)), 4)
    return found


def _noise_frequency(hu: np.ndarray, spacing_mm: tuple[float, float, float]) -> float | None:
    """Mean frequency of the noise in flat soft tissue, 1/mm: what the reconstruction kernel decides."""
    centres = homogeneous_regions(hu, tissue_masks(hu)["soft"], size=_SQUARE)
    if not centres:
        return None
    frequencies, power = nps_radial(hu, spacing_mm=spacing_mm, centres=centres, size=_SQUARE)
    weights = power * frequencies  # a ring's area grows with its frequency
    return round(float((frequencies * weights).sum() / weights.sum()), 4) if weights.sum() > 0 else None


def _thickness(header: Dataset | None) -> float | None:
    if header is None:
        return None
    try:
        return round(decimals(header, "SliceThickness", count=1)[0], 4)
    except Unusable:
        return None
