"""Which part a sample is cut from: any of those that are all there, or one of an archive that has joined by then.

How many archives have joined is a function of how far the run is, never of how fast the network was: a sample that is
to come from an archive that has joined but is not there yet waits for it. So the same samples are made whether the
archives came in time, late, or lay prepared before.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Protocol

import numpy as np

from bundle.data.arrivals import HubStream
from bundle.data.splits import Part
from bundle.errors import BundleError
from bundle.files import digest


class PartSource(Protocol):
    """What a sample's part is drawn from."""

    @property
    def parts(self) -> list[Part]:
        """All that are known now."""

    @property
    def identity(self) -> str:
        """What must be the same for a run to go on with the same samples, in words."""

    def draw(self, rng: np.random.Generator, epochs: float) -> Part:
        """A part for a sample `epochs` epochs after the start of the run."""


class FixedParts:
    """Parts that are all there.

    Args:
        parts: of which each sample is one, more often of long ones.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = list(parts)

    @property
    def identity(self) -> str:
        """Number and digest of the parts."""
        parts = [(part.case.key, part.start, part.stop) for part in self.parts]
        return f"{len(parts)} series, digest {digest(repr(parts))[:12]}"

    def draw(self, rng: np.random.Generator, epochs: float) -> Part:
        """Any part, at any time."""
        # Long series have more to teach, but not in proportion: neighbouring slices are alike.
        weights = np.array([(part.stop - part.start) ** 0.5 for part in self.parts])
        return self.parts[rng.choice(len(self.parts), p=weights / weights.sum())]


class StreamedParts:
    """Parts of the archives that have joined when a sample is made; an archive is drawn first, then a series of it.

    Args:
        stream: where they come from.
        usable: whether a part can be used; those that cannot are left out.
    """

    def __init__(self, stream: HubStream, usable: Callable[[Part], bool] | None = None) -> None:
        self.stream = stream
        self.usable = usable
        self._parts: dict[int, FixedParts] = {}

    def __len__(self) -> int:
        """Archives to train on."""
        return len(self.stream.training)

    @property
    def parts(self) -> list[Part]:
        """All that are known now."""
        return list(self.stream.present.train)

    @property
    def identity(self) -> str:
        """Number of archives, revision, and digest of all that decides how they join."""
        archives = [archive.path for archive in self.stream.training]
        found = digest(repr(archives), repr(self.stream.epochs))[:12]
        return f"{len(archives)} archives at {self.stream.preparation.repository.revision[:12]}, digest {found}"

    def joined(self, epochs: float) -> int:
        """How many archives have joined: the first ones up to one that can be used, and then more, evenly."""
        share = min(epochs / self.stream.epochs, 1.0) if self.stream.epochs > 0 else 1.0
        return self._first + int((len(self) - self._first) * share)

    def draw(self, rng: np.random.Generator, epochs: float) -> Part:
        """A part of an archive that has joined; waits for it.

        Raises:
            BundleError: when no archive at all can be used, or the preparation failed.
        """
        # As many draws whatever the archives hold; some of them may hold nothing.
        for number in rng.permutation(self.joined(epochs)):
            found = self._of(int(number))
            if found.parts:
                return found.draw(rng, epochs)
        raise AssertionError("the first archives hold a part")

    @cached_property
    def _first(self) -> int:
        for number in range(len(self)):
            if self._of(number).parts:
                return number + 1
        raise BundleError(
            "no series of the archives is large or thin enough for a patch",
            hint="use a smaller patch_size or num_slices, or a larger slice_thickness_mm",
        )

    def _of(self, number: int) -> FixedParts:
        if number not in self._parts:
            # A series that lies in two archives must not be on both sides.
            apart = {part.case.key for part in self.stream.initial.validation}
            found = self.stream.wait(self.stream.training[number]).cases
            parts = [Part.whole(case) for case in found if case.key not in apart]
            self._parts[number] = FixedParts([part for part in parts if self.usable is None or self.usable(part)])
        return self._parts[number]
