"""What several tests of restoration start from."""

import pytest
from phantom_series import write_phantom_series
from tiny_workflows import run_tiny, write_tiny_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_tiny_weights(tmp_path_factory.mktemp("weights") / "model.pt", part="refiner", scale=0.05)


@pytest.fixture
def run(tmp_path, weights):
    def start(dataset_dir, **options):
        folder = options.pop("output_dir", tmp_path / "out")
        run_tiny("inference.yaml", "inference", dataset_dir=dataset_dir, output_dir=folder, weights=weights, **options)

    return start


@pytest.fixture
def two_series(tmp_path):
    write_phantom_series(tmp_path / "in" / "a", slices=3)
    write_phantom_series(tmp_path / "in" / "b", slices=3, patient="phantom-2", seed=1)
    return tmp_path / "in"
