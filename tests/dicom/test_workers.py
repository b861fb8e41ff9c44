import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from compressed_series import write_compressed_series
from pydicom import uid

from bundle.dicom import codecs, index, workers
from bundle.dicom.index import find_series, read_volume
from bundle.dicom.pixels import Image
from bundle.dicom.series import _images
from bundle.dicom.sources import Sources
from bundle.errors import BundleError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _own_workers():
    workers.close_all()
    yield
    workers.close_all()


def jobs_of(folder: Path) -> list[workers.Job]:
    with Sources() as sources:
        images: list[Image] = list(_images(find_series(folder).series[0].slices, sources))
    return [image.job(index) for index, image in enumerate(images)]


def misbehave(monkeypatch, what: str) -> None:
    """Make decoders of workers run `what` in place of decoding."""
    real = codecs.command

    def command(channel: int, memory: int, family: str) -> list[str]:
        *start, code = real(channel, memory, family)
        broken = f"import os, time; from bundle.dicom import codecs; codecs.decompress = lambda stream, codec: {what}; "
        before, serve = code.split("from bundle", 1)
        return [*start, f"{before}{broken}from bundle{serve}"]

    monkeypatch.setattr(codecs, "command", command)


def test_words_are_those_of_the_decoder_itself_and_workers_are_used_again(tmp_path):
    write_compressed_series(tmp_path, uid.JPEGLSLossless, slices=24)
    jobs = jobs_of(tmp_path)
    words = {outcome.job.index: bytes(outcome.words) for outcome in workers.run(jobs, count=len(jobs))}
    assert words == {job.index: bytes(codecs.decompress(job.stream, job.codec)) for job in jobs}
    first = set(workers.alive)
    assert len(first) == min(workers.worker_count(), 3) and set(workers._idle) == first
    list(workers.run(jobs, count=len(jobs)))
    assert set(workers.alive) == first


def test_frames_may_grow(tmp_path):
    write_compressed_series(tmp_path / "a", uid.RLELossless, slices=3, size=16)
    write_compressed_series(tmp_path / "b", uid.RLELossless, slices=3, size=300)
    jobs = jobs_of(tmp_path / "a") + jobs_of(tmp_path / "b")
    for outcome in workers.run(jobs, count=2):
        assert bytes(outcome.words) == bytes(codecs.decompress(outcome.job.stream, outcome.job.codec))


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("time.sleep(60)", "takes more than"),
        ("os.abort()", "decoder crash"),
        ("bytearray(4 << 30)", "cannot be decoded"),
        ("b'short'", "another number of pixels"),
        ("bytes(100 << 20)", "another number of pixels"),
    ],
)
def test_a_decoder_that_misbehaves_is_a_named_refusal(tmp_path, monkeypatch, what, words):
    write_compressed_series(tmp_path, uid.JPEGLSLossless, slices=3)
    series = find_series(tmp_path).series[0]
    with monkeypatch.context() as patch:
        misbehave(patch, what)
        patch.setattr(codecs, "SECONDS", 1.0)
        started = time.monotonic()
        with pytest.raises(BundleError, match=words) as caught:
            series.load()
        assert "slice 0 (IM" in str(caught.value)
        assert time.monotonic() - started < 10
        workers.close_all()
    assert series.load().shape == (32, 32, 3)


def test_a_worker_that_was_killed_is_started_again(tmp_path):
    hu = write_compressed_series(tmp_path, uid.JPEGLSLossless, slices=3)
    read_volume(str(tmp_path))
    (worker,) = workers._idle
    os.kill(worker._process.pid, signal.SIGKILL)
    worker._process.wait()
    with pytest.raises(BundleError, match="crash"):
        read_volume(str(tmp_path))
    np.testing.assert_array_equal(read_volume(str(tmp_path)).array, hu)


def test_threads_do_not_share_workers(tmp_path):
    hu = write_compressed_series(tmp_path, uid.JPEGLSLossless, slices=12)
    right = []

    def load() -> None:
        right.append(np.array_equal(read_volume(str(tmp_path)).array, hu))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 4 and len(workers._idle) <= workers.worker_count()


def test_a_forked_child_has_workers_of_its_own(tmp_path):
    hu = write_compressed_series(tmp_path, uid.JPEGLSLossless, slices=3)
    read_volume(str(tmp_path))
    child = os.fork()
    if child == 0:
        fresh = not workers._idle and not workers.alive
        right = np.array_equal(read_volume(str(tmp_path)).array, hu)
        workers.close_all()
        os._exit(0 if fresh and right else 1)
    assert os.waitpid(child, 0)[1] == 0
    np.testing.assert_array_equal(read_volume(str(tmp_path)).array, hu)


def test_daemonic_processes_have_one_worker(tmp_path, monkeypatch):
    monkeypatch.setitem(workers.multiprocessing.current_process()._config, "daemon", True)
    hu = write_compressed_series(tmp_path, uid.JPEGLSLossless, slices=20)
    np.testing.assert_array_equal(read_volume(str(tmp_path)).array, hu)
    assert len(workers.alive) == 1


def test_without_processes_frames_are_decoded_here_with_one_word(tmp_path, monkeypatch, caplog):
    hu = write_compressed_series(tmp_path, uid.JPEGLSLossless, slices=3)

    def refuse(self: workers.Worker, family: str) -> None:
        raise OSError("no processes here")

    monkeypatch.setattr(workers.Worker, "__init__", refuse)
    monkeypatch.setattr(workers, "_warned", [])
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            np.testing.assert_array_equal(read_volume(str(tmp_path)).array, hu)
    assert [record.message for record in caplog.records if "without limits" in record.message] != []
    assert len(workers._warned) == 1


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    write_compressed_series(tmp_path, uid.JPEGLSLossless, slices=3)
    code = f"""
        import os, signal
        from bundle.dicom import workers
        from bundle.dicom.index import read_volume
        read_volume({str(tmp_path)!r})
        print(workers._idle[0]._process.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=ROOT)
    worker = Path(f"/proc/{int(done.stdout)}")
    for _ in range(100):
        if not worker.exists() or "Z" in (worker / "stat").read_text().rpartition(")")[2].split()[0]:
            return
        time.sleep(0.05)
    raise AssertionError("the worker outlived its parent")


def test_closed_early_leaves_usable_workers(tmp_path):
    write_compressed_series(tmp_path, uid.JPEGLSLossless, slices=12)
    jobs = jobs_of(tmp_path)
    outcomes = workers.run(jobs, count=len(jobs))
    next(outcomes)
    outcomes.close()
    assert all(worker.job is None for worker in workers.alive)
    assert len(list(workers.run(jobs, count=len(jobs)))) == len(jobs)


def test_workers_start_while_headers_are_read(tmp_path, monkeypatch):
    hu = write_compressed_series(tmp_path, uid.JPEGLSLossless, slices=12)
    ready = []
    real = index.read_slices
    monkeypatch.setattr(index, "read_slices", lambda *arguments: ready.append(len(workers.alive)) or real(*arguments))
    np.testing.assert_array_equal(read_volume(str(tmp_path)).array, hu)
    assert ready == [0] + [min(workers.worker_count(), 2)] * 11
    workers.close_all()
    find_series(tmp_path)
    assert not workers.alive
