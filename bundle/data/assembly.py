"""From a data folder to training and validation parts, once per run; what the training configs call."""

import contextlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from bundle.configuration import flag
from bundle.data.archives import ArchivePreparation, prepare_archives
from bundle.data.arrivals import HubStream
from bundle.data.hub import PREFIX, HubRepository, as_categories
from bundle.data.joining import StreamedParts
from bundle.data.prepared import PreparedCase, prepare_cases
from bundle.data.recipe import describe
from bundle.data.sources import find_cases
from bundle.data.splits import Part, Split, split
from bundle.errors import BundleError
from bundle.files import write_json
from bundle.progress import counted

logger = logging.getLogger(__name__)


class TrainingData:
    """Prepared cases of a data folder, split; nothing is read before the first part is asked for.

    Args:
        dataset_dir: folder of DICOM or NIfTI.
        transform: chain from files to image and noises.
        cache_dir: where prepared cases lie.
        recipe: settings beside those of `transform` that change the result.
        num_slices: slices of a training patch.
        realisations: noise realisations per case.
        max_samples: use only so many cases; of a stream, so many archives.
        gaps: as for `find_cases`.
        pairs: as for `find_cases`.
        validation_fold: as for `find_cases`.
        categories: of a data set on the hub: folders to use.
        cache_gigabytes: of a data set on the hub: most that its archives may take on the disk.
        streaming: of a data set on the hub: begin when the first archives are there, prepare the rest beside.
        streaming_epochs: within which the archives join.
        streaming_validation: most archives that validate then.
        validation_fraction: share of the patients that validate.
        validation_folders: folders whose patients validate, instead of a share.
        seed: of the split.
        progress: called with (done, total) while preparing; None shows it.
    """

    def __init__(
        self,
        dataset_dir: str | Path | None,
        *,
        transform: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        cache_dir: str | Path,
        recipe: Mapping[str, Any] | None = None,
        num_slices: int,
        realisations: int = 1,
        max_samples: int | None = None,
        gaps: str = "refuse",
        pairs: str | None = None,
        validation_fold: int = 0,
        categories: Sequence[str] | str | None = None,
        cache_gigabytes: float = 20.0,
        streaming: bool | str = False,
        streaming_epochs: float = 1.0,
        streaming_validation: int = 4,
        validation_fraction: float = 0.2,
        validation_folders: Sequence[str] = (),
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.dataset_dir = dataset_dir
        self.transform = transform
        self.cache_dir = Path(cache_dir)
        self.recipe = {**(recipe or {}), "transform": describe(transform)}  # now: transforms change while they work
        self.num_slices = num_slices
        self.realisations = realisations
        self.max_samples = max_samples
        self.gaps = gaps
        self.pairs = pairs
        self.validation_fold = validation_fold
        self.categories = as_categories(categories)
        self.cache_gigabytes = cache_gigabytes
        self.streaming = flag(streaming) and str(dataset_dir).startswith(PREFIX)
        self.streaming_epochs = streaming_epochs
        self.streaming_validation = streaming_validation
        self.revision = ""
        self.validation_fraction = validation_fraction
        self.validation_folders = list(validation_folders)
        self.seed = seed
        self.progress = progress
        self._summary: Path | None = None
        self._writing = threading.Lock()
        self.skipped: dict[str, str] = {}  # all, with the reason
        self.lost = 0  # of those, what should have been usable: not what never was a CT volume

    @cached_property
    def split(self) -> Split:
        """Both sides; prepares the cases, of a stream those that a training starts with.

        Both are empty as long as no folder is named (a config that is only read).
        """
        if self.dataset_dir is None:
            return Split((), (), "")
        if self.stream is not None:
            self.stream.begin()
            return self.stream.initial
        prepared = self._prepared()
        return split(
            prepared,
            patch_slices=self.num_slices,
            fraction=self.validation_fraction,
            folders=self.validation_folders,
            seed=self.seed,
        )

    def _prepared(self) -> list[PreparedCase]:
        assert self.dataset_dir is not None
        if str(self.dataset_dir).startswith(PREFIX):
            return self._prepared_from_hub()
        source = find_cases(
            self.dataset_dir,
            max_samples=self.max_samples,
            gaps=self.gaps,
            pairs=self.pairs,
            validation_fold=self.validation_fold,
        )
        if Path(self.dataset_dir).is_dir() and len({case.is_nifti for case in source.cases}) > 1:
            raise BundleError(
                "dataset_dir holds DICOM and NIfTI: which are of one patient cannot be told, and so not be split",
                hint="name a folder with one of them, or a datalist with patients",
            )
        with self._progress("case") as progress:
            prepared, self.skipped = prepare_cases(
                source.cases,
                transform=self.transform,
                cache_dir=self.cache_dir,
                recipe=self.recipe,
                realisations=self.realisations,
                progress=progress,
            )
        self.lost = len(self.skipped) + sum(not refusal.foreign for refusal in source.refused)
        # Series by their keys; a file without one by a number, for its path may name the patient.
        for number, refusal in enumerate(source.refused):
            self.skipped[refusal.key or f"file {number}"] = refusal.reason
        return prepared

    def _prepared_from_hub(self) -> list[PreparedCase]:
        with self._progress("archive") as progress:
            prepared, self.skipped = prepare_archives(self._of_hub(), max_samples=self.max_samples, progress=progress)
        self.lost = len(self.skipped)
        return prepared

    def _of_hub(self) -> ArchivePreparation:
        repository = HubRepository(
            str(self.dataset_dir),
            cache_dir=self.cache_dir,
            categories=self.categories,
            cache_bytes=self.cache_gigabytes * 1e9,
        )
        self.revision = repository.revision
        return ArchivePreparation(
            repository,
            transform=self.transform,
            cache_dir=self.cache_dir,
            recipe=self.recipe,
            realisations=self.realisations,
            gaps=self.gaps,
            pairs=self.pairs,
        )

    @cached_property
    def stream(self) -> HubStream | None:
        """The archives that come while training runs; None where all is prepared before.

        Raises:
            BundleError: when the hub does not list them.
        """
        if not self.streaming:
            return None
        preparation = self._of_hub()
        archives = preparation.archives[: self.max_samples]
        if len(archives) < 2 or self.validation_folders:
            return None
        return HubStream(
            preparation,
            archives,
            validation_fraction=self.validation_fraction,
            validation_archives=self.streaming_validation,
            seed=self.seed,
            epochs=self.streaming_epochs,
            told=self._archive_came,
        )

    def _progress(self, unit: str) -> contextlib.AbstractContextManager[Callable[[int, int], None]]:
        return contextlib.nullcontext(self.progress) if self.progress else counted("preparing", unit=unit)

    def prepare_all(self) -> None:
        """Prepare also what a training would not wait for."""
        if self.stream is None:
            _ = self.split
        else:
            with self._progress("archive") as progress:
                prepare_archives(self.stream.preparation, progress=progress, archives=self.stream.archives)
            self._note_skipped()

    def check(self) -> None:
        """Raise what the preparation in the background failed with, if it did."""
        if self._streams:
            self.stream.check()  # type: ignore[union-attr]

    def close(self) -> None:
        """End the preparation in the background, if there is one."""
        if self._streams:
            self.stream.close()  # type: ignore[union-attr]

    @property
    def _streams(self) -> bool:
        """Whether the stream was asked for: it is not listed only to be closed."""
        return self.__dict__.get("stream") is not None

    @property
    def awaited(self) -> int:
        """Archives to train on that have not come yet."""
        return self.stream.awaited if self.stream is not None else 0

    @property
    def present(self) -> Split:
        """Both sides as far as they have come: all but of a stream."""
        return self.split if self.stream is None else self.stream.present

    @property
    def train(self) -> tuple[Part, ...] | StreamedParts:
        """Parts to train on."""
        return self.split.train if self.stream is None else StreamedParts(self.stream)

    @property
    def validation(self) -> tuple[Part, ...]:
        """Parts to validate on."""
        return self.split.validation

    def patches_per_epoch(self, patch_size: int) -> int:
        """How many patches cover the training parts once: the length of an epoch when none is set.

        Of a stream it is known before the volumes are: a voxel takes about a byte of a zipped CT.
        """
        if self.stream is not None:
            voxels = sum(archive.size for archive in self.stream.training)
        else:
            parts = self.split.train
            voxels = sum(part.case.shape[0] * part.case.shape[1] * (part.stop - part.start) for part in parts)
        return max(voxels // (patch_size * patch_size * self.num_slices), 1)

    def write_summary(self, path: Path) -> None:
        """Write which case (by key) trains, validates or was skipped, and why; of a stream again as archives come."""
        with self._writing:  # archives are told of by a thread
            self._summary = path
            self._write_summary(path)

    def _write_summary(self, path: Path) -> None:
        present = self.present
        self._note_skipped()
        used = {part.case.key for part in present.train + present.validation}
        write_json(
            path,
            {
                "validation_on": present.validation_on,
                **({"revision": self.revision} if self.revision else {}),
                "cases": {"used": len(used), "skipped": len(self.skipped)},
                **({"archives_awaited": self.awaited} if self.awaited else {}),
                "train": [_described(part) for part in present.train],
                "validation": [_described(part) for part in present.validation],
                "skipped": self.skipped,
            },
        )

    def _note_skipped(self) -> None:
        if self.stream is not None:
            self.skipped = self.stream.skipped
            self.lost = len(self.skipped)

    def _archive_came(self, reasons: str) -> None:
        logger.info("an archive came%s", f"; not used of it: {reasons}" if reasons else "")
        if self._summary is not None:
            self.write_summary(self._summary)
            logger.info("%d archives to come", self.awaited)


def _described(part: Part) -> dict[str, Any]:
    return {"series": part.case.key, "first_slice": part.start, "slices": part.stop - part.start}
