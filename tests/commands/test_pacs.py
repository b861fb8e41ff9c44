"""The PACS loop with a real Orthanc: what goes in by C-STORE comes back derived, once, whatever happens between."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pydicom
import pytest
from orthanc_server import running_orthanc
from phantom_series import phantom_uid, write_phantom_series
from tiny_workflows import ROOT, write_tiny_weights

from bundle.commands.main import main
from bundle.commands.pacs import Worker, pacs
from bundle.dicom.dicomweb import Pacs
from bundle.errors import BundleError
from bundle.restoration.evaluator import RestorationEvaluator


@pytest.fixture
def orthanc(tmp_path):
    (tmp_path / "orthanc").mkdir()
    with running_orthanc(tmp_path / "orthanc") as server:
        yield server


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_tiny_weights(tmp_path_factory.mktemp("weights") / "model.pt", part="refiner", scale=0.01)


def arguments(url, folder, weights, **options):
    options = {"settle_seconds": 0, "weights_file": weights, "preset": "tiny", "mixed_precision": "off", **options}
    given = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    return ["--url", url, "--work_dir", str(folder), "--device", "cpu", *given]


def images(orthanc):
    """Digest of every stored file."""
    every = json.loads(orthanc.get("instances"))
    return {one: hashlib.sha256(orthanc.get(f"instances/{one}/file")).hexdigest() for one in every}


def last_change(orthanc):
    """Grows with everything that is stored, also with what replaces itself."""
    return json.loads(orthanc.get("changes?last"))["Last"]


def derived(orthanc, patient):
    """The derived series of a study, by DICOMweb."""
    client, study = orthanc.web(), phantom_uid(patient, "study")
    source = phantom_uid(patient, "series")
    uids = [one["0020000E"]["Value"][0] for one in client.search_for_series(study)]
    return {uid: client.retrieve_series(study, uid) for uid in uids if uid != source}


def send(orthanc, folder, **options):
    write_phantom_series(folder, **options)
    assert set(orthanc.c_store(sorted(folder.iterdir()))) == {0}


def test_a_study_comes_back_derived_and_only_once(orthanc, weights, tmp_path, capsys):
    send(orthanc, tmp_path / "a", patient="a", slices=5)
    send(orthanc, tmp_path / "gap", patient="gap", slices=6, drop=(2,))  # refused: a slice is missing
    originals = images(orthanc)
    line = arguments(f"{orthanc.url}/dicom-web", tmp_path / "work", weights)
    assert pacs(line) == 3
    (result,) = derived(orthanc, "a").values()
    assert len(result) == 5 and not derived(orthanc, "gap")
    sources = {f"{item.ReferencedSOPInstanceUID}" for image in result for item in image.SourceImageSequence}
    assert sources == {phantom_uid("a", "series", k) for k in range(5)}
    stored = images(orthanc)
    assert originals.items() <= stored.items() and len(stored) == len(originals) + 5
    said = capsys.readouterr().err
    assert "1 series sent, 1 refused" in said and "2.25." not in said and "Phantom" not in said

    # A second round sends nothing; nor does one that has lost its ledger, and does everything again.
    before = last_change(orthanc)
    assert pacs(line) == 0
    (tmp_path / "work" / "ledger.json").unlink()
    assert pacs([*line, "--tolerate_bad_series", "true"]) == 0
    assert last_change(orthanc) == before and images(orthanc) == stored
    assert (tmp_path / "work" / "ledger.json").stat().st_mode & 0o777 == 0o600
    assert not list((tmp_path / "work" / "in").iterdir())

    # What comes later is taken, by rule.
    send(orthanc, tmp_path / "b", patient="b", slices=4, SeriesDescription="thick")
    send(orthanc, tmp_path / "c", patient="c", slices=4, SeriesDescription="thin")
    assert pacs([*line, "--match", "SeriesDescription=thin"]) == 0
    assert derived(orthanc, "c") and not derived(orthanc, "b")


def test_a_series_that_still_grows_is_left_until_it_is_whole(orthanc, weights, tmp_path):
    write_phantom_series(tmp_path / "in", patient="slow", slices=6)
    # By position: a part of it is a whole, shorter scan, which is what makes a hasty worker wrong.
    files = sorted((tmp_path / "in").iterdir(), key=lambda path: pydicom.dcmread(path).InstanceNumber)
    line = arguments(f"{orthanc.url}/dicom-web", tmp_path / "work", weights, settle_seconds=60)
    now = [1000.0]
    orthanc.c_store(files[:4])
    assert pacs(line, clock=lambda: now[0]) == 0
    now[0] += 59
    orthanc.c_store(files[4:])
    assert pacs(line, clock=lambda: now[0]) == 0
    now[0] += 59
    assert pacs(line, clock=lambda: now[0]) == 0 and not derived(orthanc, "slow")
    now[0] += 2
    assert pacs(line, clock=lambda: now[0]) == 0
    (result,) = derived(orthanc, "slow").values()
    assert len(result) == 6


class Throttle(threading.Thread):
    """A proxy that stops in the middle of what is stored, after so many bytes of the request."""

    def __init__(self, port, after):
        super().__init__(daemon=True)
        self.target, self.after, self.reached = port, after, threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]

    def run(self):
        while True:
            inner, _ = self.listener.accept()
            threading.Thread(target=self.serve, args=(inner,), daemon=True).start()

    def serve(self, inner):
        outer = socket.create_connection(("127.0.0.1", self.target))
        threading.Thread(target=self.copy, args=(outer, inner), daemon=True).start()
        self.copy(inner, outer, watch=True)

    def copy(self, source, target, watch=False):
        storing, passed = False, 0
        try:
            while data := source.recv(65536):
                storing |= watch and data.startswith(b"POST ")
                passed += len(data) * storing
                if storing and passed > self.after:
                    self.reached.set()
                    threading.Event().wait()  # nothing goes on; the worker hangs until it is killed
                target.sendall(data)
        except OSError:
            pass
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)  # close would wait for the thread that reads from it


@pytest.mark.full
def test_a_killed_worker_leaves_nothing_half_sent(orthanc, weights, tmp_path):
    send(orthanc, tmp_path / "in", patient="killed", slices=40)
    originals = images(orthanc)
    throttle = Throttle(orthanc.http_port, after=160_000)  # about half of the 40 images
    throttle.start()
    line = arguments(f"http://127.0.0.1:{throttle.port}/dicom-web", tmp_path / "work", weights)
    worker = subprocess.Popen([sys.executable, "-m", "bundle", "pacs", *line], cwd=ROOT)
    try:
        assert throttle.reached.wait(300)
    finally:
        worker.kill()
        worker.wait()
    time.sleep(1)  # time for the server to store a part, if it were one to do so
    assert images(orthanc) == originals
    line = arguments(f"{orthanc.url}/dicom-web", tmp_path / "work", weights)
    assert pacs(line) == 0
    (result,) = derived(orthanc, "killed").values()
    assert len({image.SOPInstanceUID for image in result}) == len(result) == 40
    before = last_change(orthanc)
    assert pacs(line) == 0 and last_change(orthanc) == before
    assert originals.items() <= images(orthanc).items()


def test_what_a_killed_fetch_left_is_no_series(orthanc, weights, tmp_path, monkeypatch):
    """Killed while it fetched: a part of a series is a lawful, shorter one, and must neither stay nor be restored."""
    send(orthanc, tmp_path / "in", patient="whole", slices=6)
    work = tmp_path / "work"
    shutil.copytree(tmp_path / "in", work / "in" / ".gone.abc.part")
    shutil.copytree(tmp_path / "in", work / "out" / ".gone.abc.part")
    monkeypatch.setattr(Pacs, "series", lambda *_: iter(()))
    assert pacs(arguments(f"{orthanc.url}/dicom-web", work, weights)) == 0
    assert not list((work / "in").iterdir()) and not list((work / "out").iterdir())


def test_sigterm_during_the_last_series_of_a_batch_ends_the_worker(orthanc, weights, tmp_path, monkeypatch, capsys):
    send(orthanc, tmp_path / "a", patient="a", slices=4)
    line = arguments(f"{orthanc.url}/dicom-web", tmp_path / "work", weights)
    process = RestorationEvaluator.process

    def asked(self, *given):
        os.kill(os.getpid(), signal.SIGTERM)
        return process(self, *given)

    monkeypatch.setattr(RestorationEvaluator, "process", asked)
    assert main(["pacs", *line]) == 75
    assert "stopped between series" in capsys.readouterr().err and not derived(orthanc, "a")
    (done,) = (tmp_path / "work" / "out").glob("*/dicom")
    written = {path: path.stat().st_mtime_ns for path in done.iterdir()}
    monkeypatch.setattr(RestorationEvaluator, "process", None)  # nothing is restored twice
    monkeypatch.setattr(Worker, "_tidy", lambda *_: None)
    assert main(["pacs", *line]) == 0
    assert derived(orthanc, "a") and {path: path.stat().st_mtime_ns for path in done.iterdir()} == written


def test_a_restored_series_whose_files_are_gone_is_not_taken_for_sent(orthanc, weights, tmp_path, monkeypatch, capsys):
    send(orthanc, tmp_path / "a", patient="a", slices=4)
    line = arguments(f"{orthanc.url}/dicom-web", tmp_path / "work", weights)
    monkeypatch.setattr(Worker, "_send", lambda _: 0)
    assert pacs(line) == 0
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "work" / "out")
    assert pacs(line) == 0
    assert "files are gone" in capsys.readouterr().err and derived(orthanc, "a")


@pytest.mark.full
@pytest.mark.parametrize("after_seconds", [8, 9, 10, 11, 12, 14])
def test_a_worker_killed_anywhere_is_made_good_by_the_next(orthanc, weights, tmp_path, after_seconds):
    for patient in "ab":
        send(orthanc, tmp_path / patient, patient=patient, slices=12)
    line = arguments(f"{orthanc.url}/dicom-web", tmp_path / "work", weights)
    worker = subprocess.Popen([sys.executable, "-m", "bundle", "pacs", *line], cwd=ROOT)
    time.sleep(after_seconds)
    worker.kill()
    worker.wait()
    assert pacs(line) == 0
    for name in ("in", "out"):
        assert not list((tmp_path / "work" / name).glob(".*.part"))
    for patient in "ab":
        (result,) = derived(orthanc, patient).values()
        assert len(result) == 12
    before = last_change(orthanc)
    assert pacs(line) == 0 and last_change(orthanc) == before


def test_half_a_series_in_the_pacs_is_completed(orthanc, weights, tmp_path, monkeypatch):
    """A server that takes a part of a request and then fails; the next round sends the rest, and no image twice."""
    send(orthanc, tmp_path / "in", patient="half", slices=6)
    store = Pacs.store

    def half(self, paths):
        store(self, paths[:3])
        raise BundleError("the PACS does not answer", exit_code=74)

    line = arguments(f"{orthanc.url}/dicom-web", tmp_path / "work", weights)
    monkeypatch.setattr(Pacs, "store", half)
    assert main(["pacs", *line]) == 74
    monkeypatch.setattr(Pacs, "store", store)
    before = len(images(orthanc))
    assert pacs(line) == 0
    (result,) = derived(orthanc, "half").values()
    assert len(result) == 6 and len(images(orthanc)) == before + 3


@pytest.mark.full
def test_sigterm_ends_a_worker_that_waits(orthanc, weights, tmp_path):
    line = arguments(f"{orthanc.url}/dicom-web", tmp_path / "work", weights, every_seconds=3600)
    with subprocess.Popen([sys.executable, "-m", "bundle", "pacs", *line], cwd=ROOT, stderr=subprocess.PIPE) as worker:
        assert b"0 series sent" in worker.stderr.readline()
        with pytest.raises(BundleError, match="another worker"):
            pacs(line)
        os.kill(worker.pid, signal.SIGTERM)
        assert worker.wait(60) == 75
        assert b"stopped by SIGTERM" in worker.stderr.read()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--url": None}, "url is required"),
        ({"--work_dir": None}, "work_dir is required"),
        ({"--mach": "x"}, "did you mean --match"),
        ({"--match": "thin"}, "KEYWORD=VALUE"),
        ({"--url": "nowhere"}, "not a DICOMweb address"),
    ],
)
def test_what_the_user_must_change(tmp_path, capsys, change, words):
    options = {"--url": "http://127.0.0.1:9/dicom-web", "--work_dir": str(tmp_path), **change}
    line = [part for key, value in options.items() if value is not None for part in (key, value)]
    assert main(["pacs", *line]) == 2
    assert re.search(words, capsys.readouterr().err)


def test_help_names_every_option(capsys):
    from bundle.commands.pacs import OPTIONS

    assert main(["pacs", "--help"]) == 0
    assert set(OPTIONS) <= set(re.findall(r"--(\w+)", capsys.readouterr().out))
