import io

import pytest

from bundle import progress
from bundle.progress import Progress, set_quiet, track


class Clock:
    """Seconds that the test moves."""

    now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def loud_again():
    yield
    set_quiet(False)


def test_a_log_gets_a_line_every_few_seconds():
    stream, clock = io.StringIO(), Clock()
    with Progress("training", total=10, every_seconds=15, stream=stream, clock=clock) as bar:
        for second in range(1, 11):
            clock.now = second * 10.0
            bar.update(note="loss 0.5")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "training: 2/10 steps in 20 s, 1 min 20 s left, loss 0.5"
    assert lines[-1].startswith("training: 10/10 steps in 1 min 40 s, 0 s left")
    assert len(lines) == 6


def test_short_work_says_nothing_in_a_log():
    stream, clock = io.StringIO(), Clock()
    with Progress("short", total=2, stream=stream, clock=clock) as bar:
        bar.update(2)
    assert stream.getvalue() == ""


def test_unknown_totals():
    stream, clock = io.StringIO(), Clock()
    with Progress("reading", unit="file", stream=stream, clock=clock) as bar:
        clock.now = 7500.0
        bar.update(3)
    assert stream.getvalue().splitlines()[0] == "reading: 3 files in 2 h 5 min"


def test_a_terminal_gets_a_bar():
    stream = Terminal()
    with Progress("training", total=4, stream=stream) as bar:
        bar.update(4, note="loss 0.5")
    assert "4/4" in stream.getvalue()


def test_quiet(loud_again):
    set_quiet(True)
    terminal, log, clock = Terminal(), io.StringIO(), Clock()
    for stream in (terminal, log):
        with Progress("training", total=1, stream=stream, clock=clock) as bar:
            clock.now += 100
            bar.update()
        assert stream.getvalue() == ""


def test_track_yields_everything():
    assert list(track([1, 2, 3], "counting")) == [1, 2, 3]
    assert list(track(iter("ab"), "letters")) == ["a", "b"]


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (3600, "1 h 0 min")])
def test_spoken_times(seconds, text):
    assert progress._spoken(seconds) == text
