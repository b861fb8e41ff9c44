import os
import struct
from multiprocessing.connection import wait

import numpy as np
import pytest

from bundle.dicom import codecs
from bundle.dicom.codecs import RLE, Codec
from bundle.dicom.worker import Job, Worker, alive, outcome

CODEC = Codec(family=RLE, rows=2, columns=4, allocated=16)


def rle(words: np.ndarray) -> bytes:
    """The most and the least significant bytes as one literal run each (PS3.5 annex G)."""
    high, low = (words >> 8).astype(np.uint8).tobytes(), (words & 255).astype(np.uint8).tobytes()
    segments = [bytes([len(part) - 1]) + part for part in (high, low)]
    segments = [part + bytes(len(part) % 2) for part in segments]
    offsets = [64, 64 + len(segments[0])] + [0] * 13
    return struct.pack("<16I", 2, *offsets) + b"".join(segments)


@pytest.fixture
def worker():
    made = Worker(RLE)
    yield made
    made.close()


def waited(worker):
    wait([worker.channel], worker.seconds_left)
    return worker.receive()


def test_decodes_one_frame_after_another(worker):
    for k in range(3):
        words = np.arange(8, dtype=np.uint16) * 1000 + k
        worker.send(Job(k, rle(words), CODEC))
        assert worker.job is not None and 0 < worker.seconds_left <= codecs.SECONDS
        reply = waited(worker)
        assert reply.job.index == k and worker.job is None and reply.problem == ""
        np.testing.assert_array_equal(np.frombuffer(reply.words, "<u2"), words)


def test_damage_and_death_are_named_and_it_goes_on(worker):
    worker.send(Job(0, b"\2" + bytes(80), CODEC))
    assert "cannot be decoded" in waited(worker).problem
    os.kill(worker._process.pid, 9)
    worker._process.wait()
    worker.send(Job(1, rle(np.arange(8)), CODEC))
    assert "crash" in waited(worker).problem
    worker.send(Job(2, rle(np.arange(8)), CODEC))
    assert waited(worker).problem == ""


def test_closing_ends_the_process():
    made = Worker()
    process = made._process
    assert made in alive and process.poll() is None
    made.close()
    assert made not in alive and process.poll() is not None


@pytest.mark.parametrize(("size", "right"), [(16, True), (17, True), (8, True), (32, True), (24, False), (18, False)])
def test_only_whole_words_are_an_image(size, right):
    result = outcome(Job(0, b"", CODEC), memoryview(bytes(size)), size)
    assert (result.problem == "") == right
