import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # helper modules of the tests

from training_fixtures import write_phantoms


@pytest.fixture(scope="session")
def scans(tmp_path_factory):
    """A DICOM folder of two patients."""
    return write_phantoms(tmp_path_factory.mktemp("scans"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Prepared cases for all workflows."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny networks are faster so, and a forked child must not wait for threads that only its parent has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
