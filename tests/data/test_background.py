import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from background_jobs import Job

from bundle.data.background import BackgroundJob
from bundle.errors import BundleError, ExitCode

LATEST_S = 60.0


def until(condition):
    end = time.monotonic() + LATEST_S
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def begun(tmp_path, end="done", **settings):
    job = BackgroundJob(Job(tmp_path / "pid", end), folder=tmp_path, name="job", **settings)
    assert job.start()
    return job


def pid_of(tmp_path):
    until(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text())
    return int((tmp_path / "pid").read_text())


def test_it_is_done_in_another_process_which_tells_its_lines_and_nothing_else(tmp_path):
    told = []
    job = begun(tmp_path, told=told.append)
    until(lambda: not job.running)
    assert told == ["begun", "ended"] and pid_of(tmp_path) != os.getpid()
    job.check()


@pytest.mark.parametrize(
    "end,text,code",
    [
        ("full", "the disk is full (free some space)", ExitCode.IO),
        ("defect", "the background process failed: ZeroDivisionError: one by none", ExitCode.DEFECT),
    ],
)
def test_what_it_failed_with_is_raised_wherever_it_is_asked_for(tmp_path, end, text, code):
    job = begun(tmp_path, end)
    until(lambda: not job.running)
    for asked in (job, pickle.loads(pickle.dumps(job)), BackgroundJob(None, folder=tmp_path, name="job")):
        with pytest.raises(BundleError) as caught:
            asked.check()
        assert str(caught.value) == text and caught.value.exit_code == code
    again = begun(tmp_path, "wait")
    again.check()  # another start forgets it
    again.close()


def test_one_that_is_killed_is_a_failure_and_one_that_is_ended_is_none(tmp_path):
    job = begun(tmp_path, "wait")
    os.kill(pid_of(tmp_path), signal.SIGKILL)
    until(lambda: not job.running)
    with pytest.raises(BundleError, match=r"ended \(-9\)") as caught:
        job.check()
    assert caught.value.exit_code == ExitCode.IO
    (tmp_path / "pid").unlink()
    job = begun(tmp_path, "wait")
    pid = pid_of(tmp_path)
    job.close()
    assert not alive(pid)
    job.check()


def test_one_process_at_a_time_does_it(tmp_path):
    first = begun(tmp_path, "wait")
    other = BackgroundJob(Job(tmp_path / "other"), folder=tmp_path, name="job")
    assert not first.start() and not other.start() and not other.running
    first.close()
    assert other.start()
    until(lambda: not other.running)
    assert (tmp_path / "other").is_file()


def test_a_fork_has_no_part_in_it(tmp_path):
    job = begun(tmp_path, "wait")
    pid = pid_of(tmp_path)

    def in_fork():
        assert not job.running and not job.start()
        job.close()

    process = multiprocessing.get_context("fork").Process(target=in_fork)
    process.start()
    process.join(LATEST_S)
    assert process.exitcode == 0 and alive(pid)
    job.close()


def test_it_does_not_outlive_a_parent_that_is_killed(tmp_path):
    code = (
        "import sys, time, pathlib; from background_jobs import Job; from bundle.data.background import BackgroundJob\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "BackgroundJob(Job(folder / 'pid', 'wait'), folder=folder, name='job').start(); time.sleep(600)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment)
    try:
        pid = pid_of(tmp_path)
        assert alive(pid)
    finally:
        parent.kill()
        parent.wait()
    until(lambda: not alive(pid))


def test_what_cannot_be_handed_over_is_said(tmp_path):
    job = BackgroundJob(lambda tell: None, folder=tmp_path, name="job")
    with pytest.raises(BundleError, match="cannot be handed to a process") as caught:
        job.start()
    assert "--streaming false" in caught.value.hint
    begun(tmp_path).close()  # the lock is free again
