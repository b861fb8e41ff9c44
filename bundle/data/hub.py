"""Archives of a data set on the hub: listed at a pinned revision, fetched with retries into a bounded cache.

A data set is OWNER/NAME with one ZIP of DICOM per patient in a folder for each category (the layout of APE-data).
Whole archives are fetched: a patient's series lie in one, and one download takes fewer calls than many ranges.
"""

import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from bundle.errors import BundleError

logger = logging.getLogger(__name__)

PREFIX = "hf://"
CATEGORIES = ("APE", "non-APE")
_URL = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?/?")
_SHAPE = "write hf://datasets/OWNER/NAME, with @REVISION behind it to pin one"
_TIMEOUT_S = 60.0
Result = TypeVar("Result")


class Unreachable(BundleError):
    """The hub did not answer, or does not serve a file; unlike a data set that may not be read at all."""


@dataclass(frozen=True)
class Archive:
    """One ZIP of a repository: its path, its size in bytes, and its category."""

    path: str
    size: int
    category: str


class HubRepository:
    """A data set on the hub.

    Args:
        url: hf://datasets/OWNER/NAME or hf://datasets/OWNER/NAME@REVISION.
        cache_dir: where archives lie while they are used.
        categories: folders to use; case, '-', '_' and blanks do not count (non-APE, non_APE).
        cache_bytes: archives beyond this are removed, the oldest first; the newest always stays.
        attempts: how often a call is tried.
        pause_s: before the second attempt; doubles each time.
        endpoint: of the hub; None takes HF_ENDPOINT, else the public one.
    """

    def __init__(
        self,
        url: str,
        *,
        cache_dir: Path,
        categories: Sequence[str] = CATEGORIES,
        cache_bytes: float = 20e9,
        attempts: int = 6,
        pause_s: float = 1.0,
        endpoint: str | None = None,
    ) -> None:
        match = _URL.fullmatch(url)
        if match is None:
            raise BundleError(f"dataset_dir '{url[:80]}' is no data set of the hub", hint=_SHAPE)
        self.name, self._wanted = match.group(1), match.group(2)
        self.cache_dir = Path(cache_dir)
        self.categories = {_plain(category): category for category in categories}
        self.cache_bytes = cache_bytes
        self.attempts = attempts
        self.pause_s = pause_s
        self.retries = 0
        self.fetched_bytes = 0
        self._endpoint = endpoint or os.environ.get("HF_ENDPOINT") or None
        self._api = HfApi(endpoint=self._endpoint)

    @cached_property
    def revision(self) -> str:
        """The commit that everything is read from; what `main` points to is looked up once."""
        info = self._call(
            lambda: self._api.repo_info(self.name, repo_type="dataset", revision=self._wanted, timeout=_TIMEOUT_S)
        )
        return str(info.sha)

    @cached_property
    def archives(self) -> tuple[Archive, ...]:
        """The ZIPs of the categories, sorted by path.

        Raises:
            BundleError: when there is none.
        """
        listed = self._call(
            lambda: list(
                self._api.list_repo_tree(self.name, repo_type="dataset", revision=self.revision, recursive=True)
            )
        )
        found = []
        for entry in listed:
            folder = _plain(entry.path.split("/")[0])
            if entry.path.lower().endswith(".zip") and "/" in entry.path and folder in self.categories:
                found.append(Archive(entry.path, int(getattr(entry, "size", 0)), self.categories[folder]))
        if not found:
            raise BundleError(
                f"data set {self.name} holds no ZIP in {' or '.join(self.categories.values())}",
                hint="check --categories",
            )
        return tuple(sorted(found, key=lambda archive: archive.path))

    def fetch(self, archive: Archive) -> Path:
        """The archive as a local file, whole; others are removed where the cache grows beyond its bound.

        Raises:
            Unreachable: when it cannot be fetched.
            BundleError: when the data set may not be read at all.
        """
        target = self._folder / archive.path
        if not (target.is_file() and target.stat().st_size == archive.size):
            self._make_room(archive.size)

            def download() -> str:
                path = hf_hub_download(
                    self.name,
                    archive.path,
                    repo_type="dataset",
                    revision=self.revision,
                    local_dir=self._folder,
                    endpoint=self._endpoint,
                )
                if Path(path).stat().st_size != archive.size:
                    Path(path).unlink()
                    raise ConnectionError("the archive came incomplete")
                return path

            self._call(download)
            self.fetched_bytes += archive.size
        os.utime(target)
        return target

    def answers(self) -> bool:
        """Whether the hub can be reached now: tells a file that is lost from a network that is.

        Raises:
            BundleError: when the data set may not be read at all.
        """
        try:
            self._api.repo_info(self.name, repo_type="dataset", revision=self.revision, timeout=_TIMEOUT_S)
        except Exception as error:
            fatal = self._explained(error)
            if fatal is not None and not isinstance(fatal, Unreachable):
                raise fatal from error
            return False
        return True

    def clear(self) -> None:
        """Remove all archives."""
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _folder(self) -> Path:
        return self.cache_dir / "archives" / self.revision[:16]

    def _make_room(self, size: int) -> None:
        held = sorted(self._folder.rglob("*.zip"), key=lambda path: path.stat().st_mtime)
        total = size + sum(path.stat().st_size for path in held)
        for path in held:
            if total <= self.cache_bytes:
                break
            total -= path.stat().st_size
            path.unlink()

    def _call(self, action: Callable[[], Result]) -> Result:
        """Run `action`, again after what may pass: refused connections, cut bodies, 429 and 5xx."""
        for attempt in range(self.attempts):
            try:
                return action()
            except Exception as error:
                fatal = self._explained(error)
                if fatal is not None:
                    raise fatal from error
                if attempt + 1 == self.attempts:
                    raise Unreachable(
                        f"the hub did not answer for data set {self.name} in {self.attempts} attempts "
                        f"({type(error).__name__})",
                        hint="check the network and start again: what was prepared stays",
                    ) from error
                self.retries += 1
                logger.info("hub: %s, attempt %d of %d follows", type(error).__name__, attempt + 2, self.attempts)
                time.sleep(self.pause_s * 2**attempt)
        raise AssertionError("attempts is at least 1")

    def _explained(self, error: Exception) -> Exception | None:
        """What no further attempt mends; None for what may pass."""
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, GatedRepoError | RepositoryNotFoundError) or status in (401, 403):
            return BundleError(
                f"data set {self.name} cannot be read: it is missing, private or gated",
                hint="accept its terms on the hub, and set HF_TOKEN to a token that may read it",
            )
        if isinstance(error, RevisionNotFoundError):
            return BundleError(f"data set {self.name} has no revision '{self._wanted}'", hint=_SHAPE)
        if isinstance(error, HfHubHTTPError) and status is not None and status != 429 and status < 500:
            return Unreachable(f"the hub refused to serve a part of data set {self.name} (status {status})")
        passing = isinstance(error, OSError | HfHubHTTPError) or type(error).__module__.startswith("httpx")
        if isinstance(error, OSError) and error.errno in (28, 122):  # the disk, not the network
            return error
        return None if passing else error


def _plain(category: str) -> str:
    return re.sub(r"[-_ ]", "", category).lower()


def as_categories(value: Any) -> tuple[str, ...]:
    """Categories of a config: a list, or names separated by commas."""
    names = value.split(",") if isinstance(value, str) else value or CATEGORIES
    return tuple(str(name).strip() for name in names)
