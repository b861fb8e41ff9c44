"""Progress for people: a bar on a terminal, a line every few seconds in a log, nothing when quiet."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TextIO, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
_quiet = False


@contextlib.contextmanager
def counted(description: str, *, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Progress of code that calls back with (done, total)."""
    with Progress(description, unit=unit) as progress:

        def update(_: int, total: int) -> None:
            progress.total = total
            progress.update()

        yield update


def set_quiet(quiet: bool) -> None:
    """Switch all progress of this process off or on."""
    global _quiet
    _quiet = quiet


class Progress:
    """Counts steps of known or unknown number and says now and then how far they are.

    Args:
        description: what is being done, in a few words.
        total: number of steps; None when unknown.
        unit: what one step is.
        every_seconds: time between two lines where there is no terminal.
        stream: where to write; None is stderr, so that stdout stays for results.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        description: str,
        *,
        total: int | None = None,
        unit: str = "step",
        every_seconds: float = 15.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.description, self.total, self.unit = description, total, unit
        self._every, self._clock = every_seconds, clock
        self._stream = sys.stderr if stream is None else stream
        self._started = self._told = clock()
        self._done = 0
        self._first: tuple[float, int] | None = None  # when the first steps were done, and how many they were
        self._bar: tqdm | None = None
        if not _quiet and self._stream.isatty():
            self._bar = tqdm(desc=description, total=total, unit=unit, file=self._stream, dynamic_ncols=True)

    def update(self, steps: int = 1, *, note: str = "") -> None:
        """Count `steps` more; `note` is a short current value, such as a loss."""
        self._done += steps
        self._first = self._first or (self._clock(), self._done)
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(steps)
        elif not _quiet and self._clock() - self._told >= self._every:
            self._tell(note)

    def close(self) -> None:
        """End the bar, or write the last line if time has passed since the one before."""
        if self._bar is not None:
            self._bar.close()
        elif not _quiet and self._done and self._clock() - self._started >= self._every:
            self._tell("")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tell(self, note: str) -> None:
        self._told = self._clock()
        seconds = self._told - self._started
        share = f"{self._done}/{self.total} {self.unit}s" if self.total else f"{self._done} {self.unit}s"
        pace = self._seconds_per_step()
        left = f", {_spoken(pace * (self.total - self._done))} left" if self.total and pace is not None else ""
        after = f", {note}" if note else ""
        print(f"{self.description}: {share} in {_spoken(seconds)}{left}{after}", file=self._stream, flush=True)

    def _seconds_per_step(self) -> float | None:
        """The pace since the first steps, for beginning takes its time; None while that alone would tell of many."""
        begun, first = self._first or (self._started, 0)
        if self._done > first:
            return (self._told - begun) / (self._done - first)
        few = self.total is not None and first < self.total / 20
        return None if few else (self._told - self._started) / max(first, 1)


def track(items: Iterable[Item], description: str, *, total: int | None = None, unit: str = "step") -> Iterator[Item]:
    """Yield `items` and show how far they are; the number is taken from `items` where they have a length."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(description, total=total, unit=unit) as progress:
        for item in items:
            yield item
            progress.update()


def _spoken(seconds: float) -> str:
    """Seconds as a person reads them: 42 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
