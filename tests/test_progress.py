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


def test_what_is_left_follows_the_pace_and_not_the_start():
    """Where slices flow, the first come out after a minute and the others every few seconds."""
    stream, clock = io.StringIO(), Clock()
    with Progress("series", total=300, unit="slice", stream=stream, clock=clock) as bar:
        for clock.now, slices in ((60.0, 2), (80.0, 8), (100.0, 290)):
            bar.update(slices)
    assert stream.getvalue().splitlines() == [
        "series: 2/300 slices in 1 min 0 s",  # too early to tell
        "series: 10/300 slices in 1 min 20 s, 12 min 5 s left",
        "series: 300/300 slices in 1 min 40 s, 0 s left",
        "series: 300/300 slices in 1 min 40 s, 0 s left",
    ]


def test_the_first_of_few_tells_how_long_the_others_take():
    stream, clock = io.StringIO(), Clock()
    bar = Progress("restoring", total=5, unit="volume", stream=stream, clock=clock)
    clock.now = 60.0
    bar.update()
    assert stream.getvalue() == "restoring: 1/5 volumes in 1 min 0 s, 4 min 0 s left\n"


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
