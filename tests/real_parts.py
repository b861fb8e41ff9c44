"""Programs that tests run where they are installed: elsewhere a test skips, and fails where they were promised."""

import os
from typing import NoReturn

import pytest


def missing(reason: str) -> NoReturn:
    """Skip; or fail, where CT_ENHANCE_REAL_PARTS=required says that everything is there."""
    if os.environ.get("CT_ENHANCE_REAL_PARTS") == "required":
        pytest.fail(f"{reason}, but CT_ENHANCE_REAL_PARTS=required")
    pytest.skip(reason)
