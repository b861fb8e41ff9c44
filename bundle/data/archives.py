"""From a data set on the hub to prepared cases, one archive after the other: only a few lie on the disk at a time.

What became of an archive is noted in the cache, at the revision it was read from: the next run does not fetch it again,
and another process learns from it that the archive is there.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock

from bundle.data.hub import Archive, HubRepository
from bundle.data.pairs import check_pairs_option
from bundle.data.prepared import PreparedCase, prepare_cases
from bundle.data.sources import dicom_cases
from bundle.data.streaming import epoch_order, stream_archives
from bundle.errors import BundleError, ExitCode
from bundle.files import digest, write_json

_ORDER_SEED = 0  # of which archives max_samples takes: the same ones whatever the seed of the training


@dataclasses.dataclass(frozen=True)
class Found:
    """What an archive holds.

    Attributes:
        cases: prepared.
        skipped: for each series that cannot be used, or for the archive as a whole, the reason.
        came: False when the archive could not be fetched.
    """

    cases: tuple[PreparedCase, ...] = ()
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)
    came: bool = True


class ArchivePreparation:
    """How the archives of a repository are prepared, and what is known of each.

    Args:
        repository: where the archives lie.
        transform: as for `prepare_cases`.
        cache_dir: as for `prepare_cases`.
        recipe: as for `prepare_cases`.
        realisations: as for `prepare_cases`.
        gaps: as for `find_cases`.
        pairs: 'thick_thin', a rule, or None.
    """

    def __init__(
        self,
        repository: HubRepository,
        *,
        transform: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        cache_dir: Path,
        recipe: Mapping[str, Any],
        realisations: int,
        gaps: str = "refuse",
        pairs: str | None = None,
    ) -> None:
        self.repository = repository
        self.transform = transform
        self.cache_dir = Path(cache_dir)
        self.recipe = dict(recipe)
        self.realisations = realisations
        self.gaps = gaps
        self.pairs = check_pairs_option(pairs)

    @cached_property
    def archives(self) -> tuple[Archive, ...]:
        """All archives, in an order that mixes the categories."""
        listed = self.repository.archives
        return tuple(listed[number] for number in epoch_order(len(listed), seed=_ORDER_SEED, epoch=0))

    @cached_property
    def settings(self) -> str:
        """Digest of all that decides what an archive is prepared to."""
        settings = [self.recipe, self.realisations, self.gaps, self.pairs, self.repository.revision]
        return digest(json.dumps(settings, sort_keys=True, default=str))

    @property
    def notes(self) -> Path:
        """Folder of what is known of archives."""
        return self.cache_dir / "hub"

    def name(self, archive: Archive) -> str:
        """Stands for a file on the hub, whose own name may be a patient's."""
        return digest(archive.path)[:16]

    def known(self, archive: Archive) -> Found | None:
        """What is known of an archive, as long as its prepared cases are still there."""
        note = self._note(archive)
        if not note.is_file():
            return None
        content = json.loads(note.read_text())
        cases = []
        for plain in content["cases"]:
            values = {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
            cases.append(PreparedCase(**{**values, "folder": self.cache_dir / plain["folder"]}))
        whole = all((case.folder / "case.json").is_file() for case in cases)
        return Found(tuple(cases), content["skipped"], content.get("came", True)) if whole else None

    def prepare(self, archive: Archive) -> Found:
        """Fetch and prepare an archive, unless it is known; one that could not be fetched is tried again.

        Raises:
            BundleError: when the data set may not be read at all, or the disk is full.
        """
        locks = self.notes / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        with FileLock(locks / self._note(archive).stem):  # another process may be at it
            found = self.known(archive)
            if found is None or not found.came:
                found = self._fetched(archive)
                if found.came:
                    self.note(archive, found)
        return found

    def note(self, archive: Archive, found: Found) -> None:
        """Write down what became of an archive."""
        content = {"cases": [_as_plain(case) for case in found.cases], "skipped": dict(found.skipped)}
        write_json(self._note(archive), content | {"came": found.came})

    def _note(self, archive: Archive) -> Path:
        return self.notes / f"{digest(self.settings, archive.path)[:24]}.json"

    def _fetched(self, archive: Archive) -> Found:
        (item,) = stream_archives(self.repository, archives=[archive])
        if item["skipped"]:
            return Found((), {self.name(archive): str(item["skipped"])}, came=archive.size == 0)
        return self._from_archive(Path(str(item["file"])), self.name(archive))

    def _from_archive(self, path: Path, name: str) -> Found:
        try:
            cases, refused = dicom_cases(path, gaps=self.gaps, pairs=self.pairs)
            reasons = {refusal.key or name: refusal.reason for refusal in refused}
            if not cases:
                return Found((), reasons or {name: "holds no CT series"})
            # One archive is one patient: de-identified headers often give all patients one ID.
            cases = [dataclasses.replace(case, patient_key=name, label="") for case in cases]
            prepared, failed = prepare_cases(
                cases,
                transform=self.transform,
                cache_dir=self.cache_dir,
                recipe=self.recipe,
                realisations=self.realisations,
            )
        except BundleError as error:
            if error.exit_code != ExitCode.USER:
                raise
            return Found((), {name: error.message})
        return Found(tuple(prepared), reasons | failed)


def prepare_archives(
    preparation: ArchivePreparation,
    *,
    archives: Sequence[Archive] | None = None,
    max_samples: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[PreparedCase], dict[str, str]]:
    """Prepare the series of a repository's archives, until there are `max_samples`.

    Args:
        preparation: of which repository, and how.
        archives: only these; None is all.
        max_samples: most cases.
        progress: called with (archives done, archives in all).

    Returns:
        Prepared cases sorted by key, and for each skipped archive or series the reason.

    Raises:
        BundleError: when nothing could be prepared, or the disk is full.
    """
    cases: dict[str, PreparedCase] = {}
    skipped: dict[str, str] = {}
    chosen = preparation.archives if archives is None else archives
    for number, archive in enumerate(chosen):
        if max_samples is not None and len(cases) >= max_samples:
            break
        found = preparation.prepare(archive)
        cases.update({case.key: case for case in found.cases})
        skipped.update(found.skipped)
        if progress:
            progress(number + 1, len(chosen))
    if not cases:
        reasons = "; ".join(sorted(set(skipped.values())))
        raise BundleError(f"no archive of {preparation.repository.name} could be used: {reasons}")
    return [cases[key] for key in sorted(cases)[:max_samples]], skipped


def _as_plain(case: PreparedCase) -> dict[str, Any]:
    plain = {field.name: getattr(case, field.name) for field in dataclasses.fields(case)}
    return plain | {"folder": case.folder.name}
