import numba
import numpy as np

from bundle.degrade import kernels
from bundle.degrade.kernels import compiled
from bundle.degrade.projector import ParallelBeam, back_project, forward


def test_number_of_threads_does_not_change_the_result(monkeypatch):
    beam = ParallelBeam(shape=(65, 65), spacing_mm=(1.0, 1.0), views=90, bin_mm=1.0)
    image = np.random.default_rng(4).random((65, 65), np.float32)
    results = []
    for threads in (1, 3):
        monkeypatch.setattr(kernels, "threads", lambda threads=threads: threads)
        sinogram = forward(image, beam=beam)
        results.append((sinogram, back_project(sinogram, beam=beam)))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])


def test_kernels_compile_where_nothing_can_be_cached(monkeypatch):
    njit = numba.njit

    def refuse(*args, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(*args, **options)

    monkeypatch.setattr(numba, "njit", refuse)

    def kernel(values: np.ndarray) -> None:
        values[0] = 7

    values = np.zeros(1)
    compiled(kernel)(values)
    assert values[0] == 7
