"""What all tests share."""

import sys

import pytest


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small lose more than they win by threads, and a forked child must not wait for its parent's."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
