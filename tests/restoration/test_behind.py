"""One rest at a time, in order; what came of it is told where it was handed over."""

import threading

import pytest
import torch

from bundle.data.sources import Case
from bundle.restoration.behind import Behind

CASES = [Case(str(number), "", (), label="") for number in range(4)]


@pytest.mark.parametrize("threaded", [False, True])
def test_in_order_one_at_a_time_and_told_in_the_callers_thread(threaded):
    done, told, at_work = [], [], threading.Lock()

    def tell(case, error):
        assert threading.current_thread() is threading.main_thread()
        told.append((case.key, error))

    def rest(number):
        assert at_work.acquire(blocking=False), "two at once"
        done.append((number, torch.is_grad_enabled(), threading.current_thread() is threading.main_thread()))
        at_work.release()
        if number == 2:
            raise ValueError("two")

    behind = Behind(tell, threaded=threaded)
    with torch.no_grad():
        for number, case in enumerate(CASES):
            behind.hand_over(case, lambda number=number: rest(number))
    assert len(told) == (3 if threaded else 4)
    behind.wait()
    behind.wait()
    assert done == [(number, False, not threaded) for number in range(4)]
    assert [key for key, _ in told] == ["0", "1", "2", "3"]
    assert [str(error) for _, error in told] == ["None", "None", "two", "None"]


@pytest.mark.parametrize("threaded", [False, True])
def test_what_telling_raises_goes_to_the_caller_and_the_next_is_not_begun(threaded):
    done = []

    def tell(_, error):
        if error is not None:
            raise error

    def fail():
        raise OSError("full")

    behind = Behind(tell, threaded=threaded)
    with pytest.raises(OSError, match="full"):
        behind.hand_over(CASES[0], fail)
        behind.hand_over(CASES[1], lambda: done.append(1))
    behind.wait()
    assert done == []
