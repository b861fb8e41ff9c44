import itertools
import pickle
import threading
import time

import pytest
from hub_files import hub_files
from hub_stub import HubStub
from training_fixtures import CountingTransform

from bundle.data import arrivals, background
from bundle.data.archives import ArchivePreparation
from bundle.data.arrivals import HubStream
from bundle.data.hub import HubRepository
from bundle.errors import BundleError, ExitCode

LATEST_S = 60.0


@pytest.fixture(scope="module")
def files():
    return hub_files(6)


@pytest.fixture
def stub(files):
    server = HubStub(dict(files))
    yield server
    for event in server.held.values():
        event.set()
    server.close()


class ThreadJob:
    """Stands for a BackgroundJob: the same work, in a thread."""

    def __init__(self, job, **_):
        self.job, self.failure, self.thread, self.starts = job, None, None, 0

    @property
    def running(self):
        return self.thread is not None and self.thread.is_alive()

    def start(self):
        self.starts += 1
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def _work(self):
        try:
            self.job(lambda line: None)
        except BundleError as error:
            self.failure = error

    def check(self):
        if self.failure is not None:
            raise self.failure

    def close(self):
        pass


@pytest.fixture
def in_thread(monkeypatch):
    monkeypatch.setattr(arrivals, "BackgroundJob", ThreadJob)
    monkeypatch.setattr(arrivals, "_POLL_S", 0.005)


def make(stub, folder, *, archives=None, **settings):
    repository = HubRepository(
        "hf://datasets/owner/name", cache_dir=folder, endpoint=stub.url, pause_s=0.001, attempts=1
    )
    preparation = ArchivePreparation(
        repository,
        transform=CountingTransform(size=32, slices=4, realisations=1),
        cache_dir=folder,
        recipe={},
        realisations=1,
    )
    chosen = preparation.archives if archives is None else preparation.archives[:archives]
    return HubStream(preparation, chosen, **{"pause_s": 0.001, **settings})


def paths(archives):
    return [archive.path for archive in archives]


@pytest.mark.parametrize("seed,most", itertools.product(range(4), (1, 2, 9)))
def test_sides_are_those_of_the_split_and_known_before_the_rest_is(stub, tmp_path, in_thread, seed, most):
    stream = make(stub, tmp_path, seed=seed, validation_fraction=0.5, validation_archives=most)
    stream.prepare_all(lambda line: None)
    below = [one for one in stream.archives if stream.places[one] < 0.5]
    usable = [one for one in below if stream.known(one) is not None and stream.known(one).cases]
    assert paths(stream.validating) == paths(usable[:most]) or (not usable and len(stream.validating) == 1)
    assert not set(stream.validating) & set(stream.training)
    assert set(stream.archives) - set(below) <= set(stream.training) | set(stream.validating) | {
        one for one in stream.archives if stream.known(one) is not None and not stream.known(one).cases
    }
    assert not stream.awaited and len(stream.skipped) <= 2


def test_no_archive_but_the_first_ones_is_waited_for(stub, tmp_path, in_thread):
    everything = make(stub, tmp_path / "known")
    everything.prepare_all(lambda line: None)
    late = everything.training[2:]
    stub.held = {archive.path: threading.Event() for archive in late}
    stream = make(stub, tmp_path / "cache")
    stream.begin()
    initial = stream.initial  # would wait for ever for one of the others
    assert initial == everything.initial or initial.validation_on == everything.initial.validation_on
    assert [part.case.key for part in initial.train] == [part.case.key for part in everything.initial.train]
    assert stream.awaited >= len(late)
    for event in stub.held.values():
        event.set()
    for archive in stream.training:
        assert [c.key for c in stream.wait(archive).cases] == [c.key for c in everything.known(archive).cases]
    assert stream.awaited == 0 and stream.skipped == everything.skipped


def test_nothing_is_begun_when_all_is_there_and_what_is_lacking_is_begun_again(stub, tmp_path, in_thread):
    make(stub, tmp_path).prepare_all(lambda line: None)
    stream = make(stub, tmp_path)
    stream.begin()
    assert stream._job.starts == 0
    case = next(found.cases[0] for found in map(stream.known, stream.training) if found.cases)
    (case.folder / "case.json").unlink()
    again = make(stub, tmp_path)
    assert [again.wait(archive) for archive in again.training] == [stream.known(a) for a in stream.training]
    assert again._job.starts == 1


def test_an_archive_that_the_hub_refuses_again_and_again_is_left_out_for_good(stub, tmp_path, in_thread):
    path = "non-APE/patient3.zip"
    stub.faults[path] = ["503"] * 1000
    stream = make(stub, tmp_path)
    stream.prepare_all(lambda line: None)
    (archive,) = (one for one in stream.archives if one.path == path)
    stub.faults.clear()  # a run that goes on must not find other data than before
    assert make(stub, tmp_path).wait(archive).cases == ()
    assert any("did not answer" in reason for reason in stream.skipped.values())


def test_a_silent_hub_is_waited_for_and_then_stops_the_run_in_a_way_to_go_on(stub, tmp_path, in_thread, monkeypatch):
    stream = make(stub, tmp_path)
    _ = stream.initial
    monkeypatch.setattr(HubRepository, "answers", lambda _: False)
    lacking = make(stub, tmp_path / "other")
    lacking.preparation.repository.fetched_bytes = 0
    for archive in stream.archives:
        stub.faults[archive.path] = ["503"] * 4
    assert lacking.initial.train, "four silences are less than it takes"
    assert all(found is None or found.came for found in map(lacking.preparation.known, lacking.archives))
    for archive in stream.archives:
        stub.faults[archive.path] = ["503"] * 1000
    silent = make(stub, tmp_path / "third")
    with pytest.raises(BundleError, match="did not answer") as caught:
        _ = silent.initial
    assert caught.value.exit_code == ExitCode.IO and "start again" in caught.value.hint


def test_fewer_than_two_usable_archives_are_said(stub, tmp_path, in_thread):
    stub.files = {name: data for name, data in stub.files.items() if "patient" not in name or "patient0" in name}
    with pytest.raises(BundleError, match=r"fewer than two archives of owner/name could be used: .*empty") as caught:
        _ = make(stub, tmp_path).initial
    assert "--streaming false" in caught.value.hint


def test_a_copy_in_another_process_waits_but_does_not_begin_the_work(stub, tmp_path, monkeypatch):
    monkeypatch.setattr(background.subprocess, "Popen", None)
    copy = pickle.loads(pickle.dumps(make(stub, tmp_path)))
    copy.begin()
    worker = threading.Thread(target=lambda: copy.wait(copy.archives[0]), daemon=True)
    worker.start()
    time.sleep(0.2)
    assert worker.is_alive()
    make(stub, tmp_path).prepare_all(lambda line: None)
    worker.join(LATEST_S)
    assert not worker.is_alive()
