"""The last part of a series' work, on a thread of its own while the next series is worked on."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from bundle.data.sources import Case

Rest = Callable[[], object]


class Behind:
    """Does one rest at a time, in order; what came of each is told in the caller's thread.

    Args:
        tell: called with a case and what its rest raised, or None, when the next one is handed over or all are waited
            for. What it raises goes to the caller.
        threaded: False does each rest at once.
    """

    def __init__(self, tell: Callable[[Case, Exception | None], None], *, threaded: bool) -> None:
        self._tell = tell
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="behind") if threaded else None
        self._pending: tuple[Case, Future[None]] | None = None

    def hand_over(self, case: Case, rest: Rest) -> None:
        """Have the rest of a case done, once that of the one before is."""
        self.wait()
        if self._pool is not None:
            self._pending = case, self._pool.submit(_without_gradients, rest)
            return
        failure = None
        try:
            rest()
        except Exception as error:
            failure = error
        self._tell(case, failure)

    def wait(self) -> None:
        """Wait for what was handed over, and tell what came of it."""
        if self._pending is None:
            return
        (case, future), self._pending = self._pending, None
        error = future.exception()
        assert error is None or isinstance(error, Exception)
        self._tell(case, error)


def _without_gradients(rest: Rest) -> None:
    with torch.no_grad():  # torch's switches are each thread's own
        rest()
