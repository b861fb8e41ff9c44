"""Decoders in processes of their own, with a time and a memory limit: hostile bytes end one of them, not us.

They also decode in parallel. Workers are plain processes that import neither torch nor pydicom, so they start fast
and inherit nothing (no threads, no GPU context); they stay for the next series and end with their parent, even when
it is killed. A daemonic process (torch's DataLoader has such workers) gets one each. Where no process can be started
at all, frames are decoded in this one, without limits (nor a look at libjpeg's warnings); a warning says so once.
"""

import atexit
import contextlib
import logging
import math
import mmap
import multiprocessing
import os
import socket
import subprocess
import tempfile
import time
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait

from bundle.dicom import codecs
from bundle.dicom.codecs import Codec

MAX_WORKERS = 8
FRAMES_PER_WORKER = 8  # fewer are decoded before a further worker has started
_GRACE_SECONDS = 0.5

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One compressed frame; `index` is the caller's name of it."""

    index: int
    stream: bytes
    codec: Codec


@dataclass(frozen=True)
class Outcome:
    """What became of a job: its words (valid until the next outcome is asked for), or what is wrong with it."""

    job: Job
    words: memoryview | None
    problem: str = ""


def run(jobs: Iterable[Job], *, count: int) -> Iterator[Outcome]:
    """Decode frames in worker processes; outcomes come as they are ready, in any order.

    Args:
        jobs: taken one by one, one ahead of the workers, so that the next is read while others are decoded.
        count: how many are expected; decides the number of workers.
    """
    pending = iter(jobs)
    ahead = next(pending, None)
    if ahead is None:
        return
    workers = _checked_out(min(worker_count(), math.ceil(count / FRAMES_PER_WORKER)))
    if not workers:
        for job in _chained(ahead, pending):
            yield _decoded_here(job)
        return
    try:
        while ahead is not None or any(worker.job for worker in workers):
            for worker in workers:
                if ahead is not None and worker.job is None:
                    worker.send(ahead)
                    ahead = next(pending, None)
            for worker in _ready(workers):
                yield worker.receive()
    finally:
        _give_back(workers)


def worker_count() -> int:
    """Workers of one process: one per processor it may use, one in all for a daemonic process."""
    if multiprocessing.current_process().daemon:
        return 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, MAX_WORKERS)


class Worker:
    """A process that decodes one frame at a time; started again when it has died.

    Attributes:
        job: the current one.
        channel: requests go out and replies come in here.

    Raises:
        OSError: when no process can be started.
    """

    def __init__(self) -> None:
        self.job: Job | None = None
        self._deadline = 0.0
        self._memory = _memory_file()
        self._map: mmap.mmap | None = None
        self._start()
        _alive.add(self)

    def _start(self) -> None:
        self.channel, theirs = socket.socketpair()
        with theirs:
            descriptors = (theirs.fileno(), self._memory)
            self._process = subprocess.Popen(
                codecs.command(*descriptors),
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C and Ctrl-Z are for the parent
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )

    def send(self, job: Job) -> None:
        """Start a job."""
        need = max(len(job.stream), job.codec.largest_bytes, 1)
        if self._map is None or len(self._map) < need:
            os.ftruncate(self._memory, need)
            self._map = mmap.mmap(self._memory, need)
        self._map[: len(job.stream)] = job.stream
        self.job = job
        self._deadline = time.monotonic() + codecs.SECONDS
        with contextlib.suppress(BrokenPipeError, ConnectionError):  # found dead when the reply is awaited
            self.channel.sendall(codecs.request(job.codec, length=len(job.stream), capacity=len(self._map)))

    @property
    def seconds_left(self) -> float:
        """Until the current job has taken too long."""
        return max(0.0, self._deadline - time.monotonic())

    def receive(self) -> Outcome:
        """Outcome of the current job, which is done, or whose time or worker is over."""
        job, self.job = self.job, None
        assert job is not None and self._map is not None, "a job was sent"
        family = job.codec.family
        reply = self._reply()
        if len(reply) < codecs.REPLY.size:
            late = self.seconds_left == 0
            self._restart()
            ending = f"takes more than {codecs.SECONDS:.0f} s" if late else "makes its decoder crash"
            return Outcome(job, None, f"pixel data are damaged: the {family} stream {ending}")
        (size,) = codecs.REPLY.unpack(reply)
        words = None if size == codecs.DAMAGED or size > len(self._map) else memoryview(self._map)[:size]
        return _outcome(job, words, size)

    def _reply(self) -> bytes:
        with contextlib.suppress(OSError):
            if wait([self.channel], 0):
                return self.channel.recv(codecs.REPLY.size, socket.MSG_WAITALL)
        return b""

    def _restart(self) -> None:
        self._process.kill()
        self._process.wait()
        self.channel.close()
        self._start()

    def settle(self) -> None:
        """Forget the current job: wait for it a moment, then start anew."""
        if self.job is None:
            return
        wait([self.channel], _GRACE_SECONDS)
        self.receive()

    def close(self, *, stop: bool = True) -> None:
        """Release everything; `stop` ends the process too (a forked child may only let go of it)."""
        _alive.discard(self)
        self.channel.close()
        with contextlib.suppress(OSError):
            os.close(self._memory)
        if stop:
            self._process.kill()
            self._process.wait()
        else:
            self._process.returncode = 0  # somebody else's child: not ours to wait for


_alive: "weakref.WeakSet[Worker]" = weakref.WeakSet()
_idle: list[Worker] = []
_warned: list[bool] = []


def _checked_out(count: int) -> list[Worker]:
    """Idle workers and, as far as needed, new ones; each belongs to one `run` at a time, so threads never share."""
    workers: list[Worker] = []
    try:
        while len(workers) < count:
            try:
                workers.append(_idle.pop())
            except IndexError:
                workers.append(Worker())
    except (OSError, AttributeError, ValueError) as error:
        if not workers and not _warned:
            _warned.append(True)
            _log.warning("decoding in this process, without limits: no worker can be started (%s)", error)
    return workers


def _give_back(workers: list[Worker]) -> None:
    for worker in workers:
        try:
            worker.settle()
        except OSError:  # it died and cannot be started again
            worker.close()
            continue
        if len(_idle) < worker_count():
            _idle.append(worker)
        else:
            worker.close()


def _ready(workers: list[Worker]) -> list[Worker]:
    """Busy workers that have an answer, are dead or out of time."""
    busy = [worker for worker in workers if worker.job is not None]
    if not busy:
        return []
    ready = wait([worker.channel for worker in busy], min(worker.seconds_left for worker in busy))
    return [worker for worker in busy if worker.channel in ready or worker.seconds_left == 0]


def _decoded_here(job: Job) -> Outcome:
    try:
        words = codecs.decompress(job.stream, job.codec)
    except BaseException as error:  # a panic in Rust is no Exception
        if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":
            raise
        return _outcome(job, None, codecs.DAMAGED)
    return _outcome(job, memoryview(words), len(words))


def _outcome(job: Job, words: memoryview | None, size: int) -> Outcome:
    family, pixels = job.codec.family, job.codec.rows * job.codec.columns
    if size == codecs.DAMAGED:
        return Outcome(job, None, f"pixel data are damaged: the {family} stream cannot be decoded")
    if words is None or size // pixels not in (1, 2, 4) or size % pixels > 1:
        what = "another number of pixels than the header says"
        return Outcome(job, None, f"pixel data are damaged: the {family} stream holds {what}")
    return Outcome(job, words)


def _chained(first: Job, others: Iterator[Job]) -> Iterator[Job]:
    yield first
    yield from others


def _memory_file() -> int:
    """Descriptor of a nameless file in memory (in the temporary folder, where the system has none such)."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("frame")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, 1)
    return descriptor


@atexit.register
def close_all() -> None:
    """End all workers of this process; new ones start when needed."""
    _idle.clear()
    for worker in list(_alive):
        worker.close()


def _forget() -> None:
    """In a forked child: the workers stay the parent's, whose channels must close when it dies."""
    _idle.clear()
    for worker in list(_alive):
        worker.close(stop=False)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
