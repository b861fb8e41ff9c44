"""From a data set on the hub to prepared cases, one archive after the other: only a few lie on the disk at a time.

What became of an archive is noted in the cache, at the revision it was read from: the next run does not fetch it again.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bundle.data.hub import HubRepository
from bundle.data.pairs import check_pairs_option
from bundle.data.prepared import PreparedCase, prepare_cases
from bundle.data.sources import dicom_cases
from bundle.data.streaming import epoch_order, stream_archives
from bundle.errors import BundleError, ExitCode
from bundle.files import digest, write_json

_ORDER_SEED = 0  # of which archives max_samples takes: the same ones whatever the seed of the training


def prepare_archives(
    repository: HubRepository,
    *,
    transform: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    cache_dir: Path,
    recipe: Mapping[str, Any],
    realisations: int,
    gaps: str = "refuse",
    pairs: str | None = None,
    max_samples: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[PreparedCase], dict[str, str]]:
    """Prepare the series of a repository's archives, until there are `max_samples`.

    One archive is one patient: de-identified headers often give all patients one ID.

    Args:
        repository: where the archives lie.
        transform: as for `prepare_cases`.
        cache_dir: as for `prepare_cases`.
        recipe: as for `prepare_cases`.
        realisations: as for `prepare_cases`.
        gaps: as for `find_cases`.
        pairs: 'thick_thin', a rule, or None.
        max_samples: most cases.
        progress: called with (archives done, archives in all).

    Returns:
        Prepared cases sorted by key, and for each skipped archive or series the reason.

    Raises:
        BundleError: when nothing could be prepared, or the disk is full.
    """
    pairs = check_pairs_option(pairs)
    settings = json.dumps([dict(recipe), realisations, gaps, pairs, repository.revision], sort_keys=True, default=str)
    archives = [repository.archives[n] for n in epoch_order(len(repository.archives), seed=_ORDER_SEED, epoch=0)]
    found: dict[str, PreparedCase] = {}
    skipped: dict[str, str] = {}
    for number, archive in enumerate(archives):
        if max_samples is not None and len(found) >= max_samples:
            break
        name = digest(archive.path)[:16]  # of a file on the hub, which may name a patient
        note = cache_dir / "hub" / f"{digest(settings, archive.path)[:24]}.json"
        known = _noted(note, cache_dir)
        if known is None:
            (item,) = stream_archives(repository, archives=[archive])
            if item["skipped"]:
                known = [], {name: str(item["skipped"])}
            else:
                file = Path(str(item["file"]))
                known = _from_archive(file, name, transform, cache_dir, recipe, realisations, gaps, pairs)
            if not item["skipped"] or archive.size == 0:  # what the network lost is tried again
                write_json(note, {"cases": [_as_plain(case) for case in known[0]], "skipped": known[1]})
        found.update({case.key: case for case in known[0]})
        skipped.update(known[1])
        if progress:
            progress(number + 1, len(archives))
    if not found:
        raise BundleError(f"no archive of {repository.name} could be used: " + "; ".join(sorted(set(skipped.values()))))
    return [found[key] for key in sorted(found)[:max_samples]], skipped


def _from_archive(
    path: Path,
    name: str,
    transform: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    cache_dir: Path,
    recipe: Mapping[str, Any],
    realisations: int,
    gaps: str,
    pairs: str | None,
) -> tuple[list[PreparedCase], dict[str, str]]:
    try:
        cases, refused = dicom_cases(path, gaps=gaps, pairs=pairs)
        reasons = {refusal.key or name: refusal.reason for refusal in refused}
        if not cases:
            return [], reasons or {name: "holds no CT series"}
        cases = [dataclasses.replace(case, patient_key=name, label="") for case in cases]
        prepared, failed = prepare_cases(
            cases, transform=transform, cache_dir=cache_dir, recipe=recipe, realisations=realisations
        )
    except BundleError as error:
        if error.exit_code != ExitCode.USER:
            raise
        return [], {name: error.message}
    return prepared, reasons | failed


def _as_plain(case: PreparedCase) -> dict[str, Any]:
    plain = {field.name: getattr(case, field.name) for field in dataclasses.fields(case)}
    return plain | {"folder": case.folder.name}


def _noted(note: Path, cache_dir: Path) -> tuple[list[PreparedCase], dict[str, str]] | None:
    """What a note says, as long as the prepared cases are still there."""
    if not note.is_file():
        return None
    content = json.loads(note.read_text())
    cases = []
    for plain in content["cases"]:
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
        cases.append(PreparedCase(**{**values, "folder": cache_dir / plain["folder"]}))
    return (cases, content["skipped"]) if all((c.folder / "case.json").is_file() for c in cases) else None
