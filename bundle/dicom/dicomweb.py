"""A PACS by DICOMweb (PS3.18): which CT series it has, fetching one, storing one. Identifiers never reach a log."""

import functools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pydicom
import requests
from dicomweb_client import DICOMwebClient
from pydicom.datadict import tag_for_keyword

from bundle.dicom.series import series_key
from bundle.errors import BundleError, ExitCode

Value = TypeVar("Value")

_PAGE = 500
_AS_STORED = (("application/dicom", "*"),)  # the server must not decode and encode again
_OURS = "ct-enhance"  # as the writer names itself; a test keeps the two equal
_CONTRIBUTING_EQUIPMENT, _MANUFACTURER = "0018A001", "00080070"


@dataclass(frozen=True, repr=False)
class RemoteSeries:
    """A series of the PACS.

    Attributes:
        study_uid: Study Instance UID.
        series_uid: Series Instance UID.
        instances: how many images it holds now.
    """

    study_uid: str
    series_uid: str
    instances: int

    @property
    def key(self) -> str:
        """Series key; says nothing about the patient."""
        return series_key(self.series_uid, ())

    def __repr__(self) -> str:
        return f"RemoteSeries({self.key}, {self.instances} images)"


class Pacs:
    """A DICOMweb server.

    The user and password, or the bearer token, come from the variables CT_ENHANCE_PACS_USER and
    CT_ENHANCE_PACS_PASSWORD, or CT_ENHANCE_PACS_TOKEN: secrets have no place on a command line.

    Args:
        url: root of its DICOMweb services, such as http://orthanc:8042/dicom-web.
        timeout_seconds: for one answer.
    """

    def __init__(self, url: str, *, timeout_seconds: float = 300) -> None:
        logging.getLogger("dicomweb_client").setLevel(logging.CRITICAL)  # it logs UIDs
        session = _WildcardsAsTheyAre()
        user, token = os.environ.get("CT_ENHANCE_PACS_USER"), os.environ.get("CT_ENHANCE_PACS_TOKEN")
        if user:
            session.auth = (user, os.environ.get("CT_ENHANCE_PACS_PASSWORD", ""))
        elif token:
            session.headers["Authorization"] = f"Bearer {token}"
        try:
            self._client = DICOMwebClient(url, session=session, timeout=timeout_seconds)
            # One body with its length, not a stream of chunks: a server takes all of a request or nothing.
            self._sender = DICOMwebClient(url, session=session, timeout=timeout_seconds, chunk_size=2**40)
        except (TypeError, ValueError) as error:
            raise BundleError(
                f"url '{url}' is not a DICOMweb address", hint="such as http://HOST:PORT/dicom-web"
            ) from error
        for client in (self._client, self._sender):
            client.set_http_retry_params(retry=False)

    def series(self, match: Mapping[str, str]) -> Iterator[RemoteSeries]:
        """Yield the CT series that fit `match`: DICOM keywords with the server's wildcards and ranges."""
        filters = {"Modality": "CT", **match}
        fields = ["NumberOfSeriesRelatedInstances"]
        for found in _paged(
            lambda offset: self._client.search_for_series(
                fields=fields, search_filters=filters, limit=_PAGE, offset=offset
            ),
            "0020000E",
        ):
            study, series = _value(found, "0020000D"), _value(found, "0020000E")
            count = _value(found, "00201209")
            yield RemoteSeries(study, series, int(count) if count else len(self.instances(study, series)))

    def instances(self, study_uid: str, series_uid: str) -> set[str]:
        """SOP Instance UIDs of a series; none when the PACS does not have it."""
        found = _paged(
            lambda offset: self._client.search_for_instances(study_uid, series_uid, limit=_PAGE, offset=offset),
            "00080018",
        )
        return {_value(one, "00080018") for one in found}

    def is_derived_by_us(self, series: RemoteSeries) -> bool:
        """Whether a series is a result of this program, whatever it is called."""
        one = next(iter(sorted(self.instances(series.study_uid, series.series_uid))), None)
        if one is None:
            return False
        header = _asked(lambda: self._client.retrieve_instance_metadata(series.study_uid, series.series_uid, one))
        items = header.get(_CONTRIBUTING_EQUIPMENT, {}).get("Value", [])
        return any(_value(item, _MANUFACTURER) == _OURS for item in items)

    def fetch(self, series: RemoteSeries, folder: Path) -> int:
        """Write the images of a series into `folder`, as they are stored, and return their number."""
        number = 0

        def write() -> None:
            nonlocal number
            for dataset in self._client.iter_series(series.study_uid, series.series_uid, media_types=_AS_STORED):
                dataset.save_as(folder / f"{number:05d}.dcm", enforce_file_format=True)
                number += 1

        _asked(write)
        return number

    def store(self, paths: Sequence[Path]) -> int:
        """Store what the PACS does not have yet of one series, in one request; return how many images were sent.

        Raises:
            BundleError: with exit code 74, when the PACS did not take all.
        """
        headers = {path: pydicom.dcmread(path, stop_before_pixels=True) for path in paths}
        uids = {path: str(header.SOPInstanceUID) for path, header in headers.items()}
        first = next(iter(headers.values()))
        place = str(first.StudyInstanceUID), str(first.SeriesInstanceUID)
        held = self.instances(*place)
        missing = [path for path in paths if uids[path] not in held]
        if missing:
            _asked(lambda: self._sender.store_instances([pydicom.dcmread(path) for path in missing]))
            left = set(uids.values()) - self.instances(*place)
            if left:
                raise BundleError(
                    f"the PACS did not take {len(left)} of {len(missing)} images",
                    hint="see its log",
                    exit_code=ExitCode.IO,
                )
        return len(missing)


class _WildcardsAsTheyAre(requests.Session):
    """Sends * in a query unquoted: Orthanc 1.10 does not unquote it, and RFC 3986 lets it stand."""

    def get(self, url: str | bytes, **options: Any) -> requests.Response:  # type: ignore[override]
        """As requests' own."""
        return super().get(str(url).replace("%2A", "*"), **options)


def matching_rule(text: str) -> dict[str, str]:
    """Read a rule such as "SeriesDescription=*thin*;StudyDate=20260101-".

    Raises:
        BundleError: names what is no DICOM keyword.
    """
    rule = {}
    for part in filter(None, text.split(";")):
        keyword, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not keyword or tag_for_keyword(keyword) is None:
            raise BundleError(f"match: '{part}' is not KEYWORD=VALUE", hint="such as SeriesDescription=*thin*")
        rule[keyword] = value
    return rule


def _paged(ask: Callable[[int], list[dict[str, Any]]], identity: str) -> Iterator[dict[str, Any]]:
    """All results of a query, page by page; a server that knows no pages gives the same again, which ends it."""
    seen: set[str] = set()
    while True:
        answer = _asked(functools.partial(ask, len(seen)))
        page = [one for one in answer if _value(one, identity) not in seen]
        yield from page
        seen |= {_value(one, identity) for one in page}
        if not page:
            return


def _asked(question: Callable[[], Value]) -> Value:
    """The answer of the server; what goes wrong becomes one line without identifiers.

    Raises:
        BundleError: exit code 2 when access is refused or there is no such service, else 74: trying again may help.
    """
    try:
        return question()
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            hint = "set CT_ENHANCE_PACS_USER and CT_ENHANCE_PACS_PASSWORD, or CT_ENHANCE_PACS_TOKEN"
            raise BundleError(f"the PACS refuses access (HTTP {status})", hint=hint) from None
        code = ExitCode.USER if status in (404, 405) else ExitCode.IO
        raise BundleError(f"the PACS answers HTTP {status}", hint="check --url and its log", exit_code=code) from None
    except (requests.RequestException, ConnectionError) as error:
        name = type(error).__name__
        raise BundleError(f"the PACS does not answer ({name})", hint="check --url", exit_code=ExitCode.IO) from None


def _value(dataset: Mapping[str, Any], tag: str) -> str:
    """First value of an element of the DICOM JSON model (PS3.18 F); "" when it has none."""
    values = dataset.get(tag, {}).get("Value") or [""]
    return str(values[0])
