"""The archives of a data set on the hub, fetched and prepared by a process of their own while training runs.

The notes in the cache say what has come: all processes of a run, and the workers of their loaders, wait for the same
files, and one of the processes has the work done.
"""

import time
from collections.abc import Callable, Sequence
from functools import cached_property

from bundle.data.archives import ArchivePreparation, Found
from bundle.data.background import BackgroundJob, Tell
from bundle.data.hub import Archive
from bundle.data.splits import OTHER_PATIENTS, Part, Split, place
from bundle.errors import BundleError, ExitCode

_POLL_S = 0.1
_REFUSALS = 3  # of one archive, by a hub that answers otherwise: then it is left out for good
_SILENCES = 10  # of the hub as a whole: then the run stops, and goes on when started again


class HubStream:
    """The archives of a data set on the hub: those that validate, and those that join the training one by one.

    The order is that of the split (`splits.place`). From its front come the archives that validate, as far as
    `validation_fraction` goes, at least one and at most `validation_archives` that hold a usable series; all behind
    the fraction train. Before the first step only the former are waited for, and the first to train on.

    Args:
        preparation: of which repository, and how.
        archives: those to use.
        validation_fraction: share of the archives that are not trained on.
        validation_archives: most that validate.
        seed: of the order.
        epochs: within which the archives join, evenly; 0: all have joined from the start.
        pause_s: before an archive that did not come is tried again.
        told: called with a line for each archive that came, in a thread.
    """

    def __init__(
        self,
        preparation: ArchivePreparation,
        archives: Sequence[Archive],
        *,
        validation_fraction: float = 0.2,
        validation_archives: int = 4,
        seed: int = 0,
        epochs: float = 1.0,
        pause_s: float = 30.0,
        told: Tell | None = None,
    ) -> None:
        self.preparation = preparation
        self.places = {archive: place(preparation.name(archive), seed) for archive in archives}
        self.archives = sorted(archives, key=lambda archive: self.places[archive])
        self.validation_fraction = validation_fraction
        self.validation_archives = validation_archives
        self.epochs = epochs
        self.pause_s = pause_s
        self._found: dict[Archive, Found] = {}
        self._job = BackgroundJob(
            self.prepare_all, folder=preparation.notes, name=f"stream-{preparation.settings[:16]}", told=told
        )

    def begin(self) -> None:
        """See that the archives are being prepared, by this or by another process."""
        if not self._job.running and self._missing():
            self._job.start()

    def check(self) -> None:
        """Raise what the preparation failed with, in whatever process it runs."""
        self._job.check()

    def close(self) -> None:
        """End the preparation, if it is this process's; what was prepared stays."""
        self._job.close()

    def known(self, archive: Archive) -> Found | None:
        """What an archive holds, if that is known already."""
        if archive not in self._found:
            found = self.preparation.known(archive)
            if found is None:
                return None
            self._found[archive] = found
        return self._found[archive]

    def wait(self, archive: Archive) -> Found:
        """What an archive holds, as soon as that is known.

        Raises:
            BundleError: when the preparation failed.
        """
        while (found := self.known(archive)) is None:
            self.check()
            self.begin()
            time.sleep(_POLL_S)
        return found

    def prepare_all(self, tell: Tell) -> None:
        """Prepare all archives in the order in which they are needed.

        Raises:
            BundleError: when the hub is silent for long (exit code 74), the data set may not be read, or the disk is
                full.
        """
        _, training = self._walk(lambda archive: self._insist(archive, tell))
        for archive in training:
            self._insist(archive, tell)

    @cached_property
    def validating(self) -> tuple[Archive, ...]:
        """Archives that validate; waits for them."""
        return self._sides[0]

    @cached_property
    def training(self) -> tuple[Archive, ...]:
        """Archives that train, in the order in which they join; waits for those that validate, on which they depend."""
        return self._sides[1]

    @cached_property
    def initial(self) -> Split:
        """All that validates and the first that trains: what a training starts with; waits for it.

        Raises:
            BundleError: when there is nothing on a side.
        """
        validation = [Part.whole(case) for archive in self.validating for case in self.wait(archive).cases]
        for archive in self.training:
            train = [Part.whole(case) for case in self.wait(archive).cases]
            if train and validation:
                return Split(tuple(train), tuple(validation), OTHER_PATIENTS)
        raise BundleError(
            f"fewer than two archives of {self.preparation.repository.name} could be used: {self._reasons()}",
            hint="--streaming false splits the slices of a single patient",
        )

    @property
    def present(self) -> Split:
        """All that is known now, of both sides."""
        known = [self.known(archive) for archive in self.training]
        train = [Part.whole(case) for found in known if found is not None for case in found.cases]
        return Split(tuple(train), self.initial.validation, OTHER_PATIENTS)

    @property
    def skipped(self) -> dict[str, str]:
        """Archives and series that cannot be used, as far as it is known, with the reason."""
        found = [self.known(archive) for archive in self.archives]
        return {key: reason for one in found if one is not None for key, reason in one.skipped.items()}

    @property
    def awaited(self) -> int:
        """Archives to train on that have not come yet."""
        return sum(self.known(archive) is None for archive in self.training)

    @cached_property
    def _sides(self) -> tuple[tuple[Archive, ...], tuple[Archive, ...]]:
        return self._walk(self.wait)

    def _walk(self, look: Callable[[Archive], Found]) -> tuple[tuple[Archive, ...], tuple[Archive, ...]]:
        """Both sides; looks into as few archives as it takes to know who validates."""
        chosen: list[Archive] = []
        looked = 0
        for archive in self.archives[:-1]:  # the last always trains
            beyond = self.places[archive] >= self.validation_fraction
            if chosen and (beyond or len(chosen) >= self.validation_archives):
                break
            looked += 1
            if look(archive).cases:
                chosen.append(archive)
        rest = self.archives[looked:]
        last = self.archives[-1]
        training = [one for one in rest if self.places[one] >= self.validation_fraction or one is last]
        return tuple(chosen), tuple(training)

    def _missing(self) -> bool:
        """Whether there is anything to prepare."""
        try:
            _, training = self._walk(self._looked_up)
        except LookupError:
            return True
        return any(self.known(archive) is None for archive in training)

    def _looked_up(self, archive: Archive) -> Found:
        found = self.known(archive)
        if found is None:
            raise LookupError
        return found

    def _insist(self, archive: Archive, tell: Tell) -> Found:
        """Prepare an archive; one that the hub refuses again and again, though it answers, is noted as lost."""
        known = self.preparation.known(archive)
        if known is not None:
            return known
        refusals = silences = 0
        while not (found := self.preparation.prepare(archive)).came:
            if self.preparation.repository.answers():
                refusals += 1
            else:
                silences += 1
            if refusals == _REFUSALS:
                self.preparation.note(archive, found)
                break
            if silences == _SILENCES:
                raise BundleError(
                    next(iter(found.skipped.values())),
                    hint="start again when the network is back: the run goes on where it stood",
                    exit_code=ExitCode.IO,
                )
            time.sleep(self.pause_s)
        tell("; ".join(found.skipped.values()))
        return found

    def _reasons(self) -> str:
        return "; ".join(sorted(set(self.skipped.values())))
