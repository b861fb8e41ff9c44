"""Slices of one series sorted into stacks: by what can never be one volume, along their normal, and into passes."""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from bundle.dicom.elements import text
from bundle.dicom.geometry import LIKELY_SAME_ORIENTATION, Plane, heights, same_orientation, same_place
from bundle.dicom.slices import Slice

# Images of one place may be told apart by one of these, if it yields whole stacks of equal height.
_PASS_FIELDS = (
    "AcquisitionNumber",
    "TemporalPositionIdentifier",
    "AcquisitionDateTime",
    "AcquisitionTime",
    "ContentTime",
    "TriggerTime",
    "ImageType",
)


@dataclass(frozen=True, eq=False)
class Placed:
    """A slice and where it lies."""

    image: Slice
    plane: Plane


def split_parts(placed: Sequence[Placed]) -> dict[str, list[Placed]]:
    """Parts that can never be one volume: other orientation, kernel or tube voltage."""
    axes: list[Plane] = []
    parts: dict[str, list[Placed]] = defaultdict(list)
    for item in sorted(placed, key=lambda p: (p.image.source, p.image.frame or 0)):
        alike = [known for known in axes if same_orientation(known, item.plane, tolerance=LIKELY_SAME_ORIENTATION)]
        if not alike:
            axes.append(item.plane)
        direction = ",".join(f"{v + 0:.2f}" for v in (alike or [item.plane])[0].normal)
        header = item.image.header
        kernel, kvp = text(header, "ConvolutionKernel"), text(header, "KVP")
        parts[f"orientation {direction}, kernel {kernel or '-'}, KVP {kvp or '-'}"].append(item)
    return dict(sorted(parts.items()))


def in_order(part: list[Placed]) -> list[Placed]:
    """Along the normal; equal places in an order that does not depend on file names where UIDs tell them apart."""
    places = heights([p.plane for p in part])
    # Rounded, so that images of one place are neighbours in UID order whatever their rounding errors.
    order = sorted(
        range(len(part)),
        key=lambda n: (
            round(float(places[n]), 3),
            text(part[n].image.header, "SOPInstanceUID"),
            part[n].image.source,
            part[n].image.frame or 0,
        ),
    )
    return [part[n] for n in order]


def share_places(stack: Sequence[Placed]) -> bool:
    """Whether two slices of an ordered stack lie in one plane."""
    return any(same_place(a.plane, b.plane) for a, b in itertools.pairwise(stack))


def split_passes(stack: Sequence[Placed]) -> dict[str, list[Placed]]:
    """Passes over the same places, told apart by one element that yields whole stacks of equal height; {} if none."""
    for keyword in _PASS_FIELDS:
        passes: dict[str, list[Placed]] = defaultdict(list)
        for item in stack:
            passes[text(item.image.header, keyword)].append(item)
        sizes = {len(items) for items in passes.values()}
        if len(passes) > 1 and len(sizes) == 1 and not any(map(share_places, passes.values())) and min(sizes) > 1:
            return {f"{keyword} {value}": items for value, items in passes.items()}
    return {}
