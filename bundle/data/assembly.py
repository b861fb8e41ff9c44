"""From a data folder to training and validation parts, once per run; what the training configs call."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from bundle.data.archives import prepare_archives
from bundle.data.hub import PREFIX, HubRepository, as_categories
from bundle.data.prepared import PreparedCase, prepare_cases
from bundle.data.recipe import describe
from bundle.data.sources import find_cases
from bundle.data.splits import Part, Split, split
from bundle.files import write_json


class TrainingData:
    """Prepared cases of a data folder, split; nothing is read before the first part is asked for.

    Args:
        dataset_dir: folder of DICOM or NIfTI.
        transform: chain from files to image and noises.
        cache_dir: where prepared cases lie.
        recipe: settings beside those of `transform` that change the result.
        num_slices: slices of a training patch.
        realisations: noise realisations per case.
        max_samples: use only so many cases.
        gaps: as for `find_cases`.
        pairs: as for `find_cases`.
        validation_fold: as for `find_cases`.
        categories: of a data set on the hub: folders to use.
        cache_gigabytes: of a data set on the hub: most that its archives may take on the disk.
        validation_fraction: share of the patients that validate.
        validation_folders: folders whose patients validate, instead of a share.
        seed: of the split.
        progress: called with (done, total) while preparing.
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
        self.revision = ""
        self.validation_fraction = validation_fraction
        self.validation_folders = list(validation_folders)
        self.seed = seed
        self.progress = progress
        self.skipped: dict[str, str] = {}  # all, with the reason
        self.lost = 0  # of those, what should have been usable: not what never was a CT volume

    @cached_property
    def split(self) -> Split:
        """Both sides; prepares the cases. Both are empty as long as no folder is named (a config that is only read)."""
        if self.dataset_dir is None:
            return Split((), (), "")
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
        prepared, self.skipped = prepare_cases(
            source.cases,
            transform=self.transform,
            cache_dir=self.cache_dir,
            recipe=self.recipe,
            realisations=self.realisations,
            progress=self.progress,
        )
        self.lost = len(self.skipped) + sum(not refusal.foreign for refusal in source.refused)
        # Series by their keys; a file without one by a number, for its path may name the patient.
        for number, refusal in enumerate(source.refused):
            self.skipped[refusal.key or f"file {number}"] = refusal.reason
        return prepared

    def _prepared_from_hub(self) -> list[PreparedCase]:
        repository = HubRepository(
            str(self.dataset_dir),
            cache_dir=self.cache_dir,
            categories=self.categories,
            cache_bytes=self.cache_gigabytes * 1e9,
        )
        self.revision = repository.revision
        prepared, self.skipped = prepare_archives(
            repository,
            transform=self.transform,
            cache_dir=self.cache_dir,
            recipe=self.recipe,
            realisations=self.realisations,
            gaps=self.gaps,
            pairs=self.pairs,
            max_samples=self.max_samples,
            progress=self.progress,
        )
        self.lost = len(self.skipped)
        return prepared

    @property
    def train(self) -> tuple[Part, ...]:
        """Parts to train on."""
        return self.split.train

    @property
    def validation(self) -> tuple[Part, ...]:
        """Parts to validate on."""
        return self.split.validation

    def patches_per_epoch(self, patch_size: int) -> int:
        """How many patches cover the training parts once: the length of an epoch when none is set."""
        voxels = sum(part.case.shape[0] * part.case.shape[1] * (part.stop - part.start) for part in self.train)
        return max(voxels // (patch_size * patch_size * self.num_slices), 1)

    def write_summary(self, path: Path) -> None:
        """Write which case (by key) trains, validates or was skipped, and why."""
        used = {part.case.key for part in self.train + self.validation}
        write_json(
            path,
            {
                "validation_on": self.split.validation_on,
                **({"revision": self.revision} if self.revision else {}),
                "cases": {"used": len(used), "skipped": len(self.skipped)},
                "train": [_described(part) for part in self.train],
                "validation": [_described(part) for part in self.validation],
                "skipped": self.skipped,
            },
        )


def _described(part: Part) -> dict[str, Any]:
    return {"series": part.case.key, "first_slice": part.start, "slices": part.stop - part.start}
