"""A process that decodes, with a time and a memory limit: hostile bytes end it, and not us."""

import contextlib
import mmap
import os
import socket
import subprocess
import tempfile
import time
import weakref
from dataclasses import dataclass
from multiprocessing.connection import wait

from bundle.dicom import codecs
from bundle.dicom.codecs import Codec

_GRACE_SECONDS = 0.5
# Memory of one frame is kept for the next: handing it back and forth cost as much as a third of the decoding (glibc).
_KEPT_BYTES = str(32 << 20)
_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": _KEPT_BYTES,
    "MALLOC_TRIM_THRESHOLD_": _KEPT_BYTES,
}
alive: "weakref.WeakSet[Worker]" = weakref.WeakSet()


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


class Worker:
    """A process that decodes one frame at a time; started again when it has died.

    Args:
        family: whose decoder it loads at once; it can decode every family.

    Attributes:
        job: the current one.
        channel: requests go out and replies come in here.

    Raises:
        OSError: when no process can be started.
    """

    def __init__(self, family: str = "") -> None:
        self._family = family
        self.job: Job | None = None
        self._deadline = 0.0
        self._memory = _memory_file()
        self._map: mmap.mmap | None = None
        self._start()
        alive.add(self)

    def _start(self) -> None:
        self.channel, theirs = socket.socketpair()
        with theirs:
            descriptors = (theirs.fileno(), self._memory)
            self._process = subprocess.Popen(
                codecs.command(*descriptors, self._family),
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C and Ctrl-Z are for the parent
                env={**os.environ, **_ENVIRONMENT},
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
        return outcome(job, words, size)

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
        alive.discard(self)
        self.channel.close()
        with contextlib.suppress(OSError):
            os.close(self._memory)
        if stop:
            self._process.kill()
            self._process.wait()
        else:
            self._process.returncode = 0  # somebody else's child: not ours to wait for


def outcome(job: Job, words: memoryview | None, size: int) -> Outcome:
    """What became of a job whose decoder gave `size` bytes of `words`, or `codecs.DAMAGED`."""
    family, pixels = job.codec.family, job.codec.rows * job.codec.columns
    if size == codecs.DAMAGED:
        return Outcome(job, None, f"pixel data are damaged: the {family} stream cannot be decoded")
    if words is None or size // pixels not in (1, 2, 4) or size % pixels > 1:
        what = "another number of pixels than the header says"
        return Outcome(job, None, f"pixel data are damaged: the {family} stream holds {what}")
    return Outcome(job, words)


def _memory_file() -> int:
    """Descriptor of a nameless file in memory (in the temporary folder, where the system has none such)."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("frame")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, 1)
    return descriptor
