"""A real Orthanc with DICOMweb on loopback, for tests."""

import base64
import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
import requests
from pydicom import uid
from real_parts import missing

PLUGINS = [Path(folder) / "libOrthancDicomWeb.so" for folder in ("/usr/share/orthanc/plugins", "/usr/lib/orthanc")]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Orthanc:
    """A running server: C-STORE on `dicom_port`, REST on `http_port`; with a `user`, it asks for the password."""

    def __init__(self, user: str = "", password: str = "") -> None:
        self.user, self.password = user, password
        self.http_port, self.dicom_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.http_port}"

    def configuration(self, folder: Path, plugin: Path) -> dict:
        return {
            "StorageDirectory": str(folder / "storage"), "IndexDirectory": str(folder / "storage"),
            "HttpPort": self.http_port, "DicomPort": self.dicom_port, "HttpBindAddresses": ["127.0.0.1"],
            # Version 1.10 listens on all addresses whatever is written above, and so has to refuse strangers.
            "RemoteAccessAllowed": False, "AuthenticationEnabled": bool(self.user),
            "RegisteredUsers": {self.user: self.password} if self.user else {},
            "DicomAlwaysAllowEcho": False, "DicomAlwaysAllowStore": False, "DicomCheckModalityHost": True,
            "DicomModalities": {"test": ["ROUNDTRIP", "127.0.0.1", self.dicom_port]},
            "OverwriteInstances": False, "Plugins": [str(plugin)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }  # fmt: skip

    def get(self, path: str, data: bytes | None = None) -> bytes:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        request = urllib.request.Request(f"{self.url}/{path}", data=data)
        if self.user:
            word = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
            request.add_header("Authorization", f"Basic {word}")
        with opener.open(request, timeout=10) as answer:
            return answer.read()

    def file(self, sop_uid: str) -> bytes:
        """The file of an instance, as it is stored."""
        (found,) = json.loads(self.get("tools/lookup", sop_uid.encode()))
        return self.get(f"instances/{found['ID']}/file")

    def web(self):
        client = pytest.importorskip("dicomweb_client", reason="dicomweb-client is not installed")
        session = requests.Session()
        session.trust_env = False  # no proxy stands between this machine and itself
        session.auth = (self.user, self.password) if self.user else None
        return client.DICOMwebClient(f"{self.url}/dicom-web", session=session)

    def c_store(self, paths, *, title: str = "ROUNDTRIP") -> list[int]:
        """Status of each file, [] when the association is refused."""
        entity = pytest.importorskip("pynetdicom", reason="pynetdicom is not installed").AE(ae_title=title)
        entity.add_requested_context(uid.CTImageStorage, uid.ExplicitVRLittleEndian)
        association = entity.associate("127.0.0.1", self.dicom_port, ae_title="ORTHANC")
        if not association.is_established:
            return []
        try:
            return [association.send_c_store(pydicom.dcmread(path)).Status for path in paths]
        finally:
            association.release()

    def stow(self, paths) -> list[int]:
        answer = self.web().store_instances([pydicom.dcmread(path) for path in paths])
        assert not answer.get("FailedSOPSequence"), answer
        return [0] * len(answer.ReferencedSOPSequence)


@contextlib.contextmanager
def running_orthanc(folder: Path, *, user: str = "", password: str = "") -> Iterator[Orthanc]:
    """Start a server that keeps its files in `folder`, or skip and say what is missing."""
    program = shutil.which("Orthanc") or missing("Orthanc is not installed")
    plugin = next(filter(Path.is_file, PLUGINS), None) or missing("orthanc-dicomweb is not installed")
    server = Orthanc(user, password)
    (folder / "orthanc.json").write_text(json.dumps(server.configuration(folder, plugin)))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([program, "orthanc.json"], cwd=folder, stdout=log, stderr=log)
    try:
        wait_for(server, process, folder / "log")
        yield server
    finally:
        process.terminate()
        try:
            assert process.wait(20) == 0
        finally:
            process.kill()


def wait_for(server: Orthanc, process: subprocess.Popen, log: Path) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until and process.poll() is None:
        try:
            server.get("system")
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    pytest.fail(f"Orthanc did not start: {log.read_text()[-2000:]}")
