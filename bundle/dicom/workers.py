"""Decoders in processes of their own, with a time and a memory limit: hostile bytes end one of them, not us.

They also decode in parallel. Workers are plain processes that import neither torch nor pydicom, so they start fast
and inherit nothing (no threads, no GPU context); they stay for the next series and end with their parent, even when
it is killed. A daemonic process (torch's DataLoader has such workers) gets one each. Where no process can be started
at all, frames are decoded in this one, without limits (nor a look at libjpeg's warnings); a warning says so once.
"""

import atexit
import logging
import math
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from multiprocessing.connection import wait

from bundle.dicom import codecs
from bundle.dicom.worker import Job, Outcome, Worker, alive, outcome

MAX_WORKERS = 8
FRAMES_PER_WORKER = 8  # fewer are decoded before a further worker has started

_log = logging.getLogger(__name__)
_idle: list[Worker] = []
_warned: list[bool] = []


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
    workers = _checked_out(_workers_for(count), ahead.codec.family)
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


def prepare(family: str, *, count: int) -> None:
    """Start the workers that `count` frames will want, so that they load the decoder while headers are read."""
    _give_back(_checked_out(_workers_for(count), family))


def _workers_for(count: int) -> int:
    return min(worker_count(), math.ceil(count / FRAMES_PER_WORKER))


def worker_count() -> int:
    """Workers of one process: one per processor it may use, one in all for a daemonic process."""
    if multiprocessing.current_process().daemon:
        return 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, MAX_WORKERS)


def _checked_out(count: int, family: str) -> list[Worker]:
    """Idle workers and, as far as needed, new ones for `family`; each is one `run`'s at a time: threads never share."""
    workers: list[Worker] = []
    try:
        while len(workers) < count:
            try:
                workers.append(_idle.pop())
            except IndexError:
                workers.append(Worker(family))
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
        return outcome(job, None, codecs.DAMAGED)
    return outcome(job, memoryview(words), len(words))


def _chained(first: Job, others: Iterator[Job]) -> Iterator[Job]:
    yield first
    yield from others


@atexit.register
def close_all() -> None:
    """End all workers of this process; new ones start when needed."""
    _idle.clear()
    for worker in list(alive):
        worker.close()


def _forget() -> None:
    """In a forked child: the workers stay the parent's, whose channels must close when it dies."""
    _idle.clear()
    for worker in list(alive):
        worker.close(stop=False)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
