"""Mutated headers and pixel data: the right volume, a named refusal, or a difference that no check can see.

Where no check can see it: native and deflated words, RLE (no checksum), the entropy-coded part of JPEG lossless, JPEG
2000 and HTJ2K (their decoders notice most, not all), and header values that are lawful in themselves. The slices that
were not touched are right in every case, and so is the grid.
"""

import resource
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from compressed_series import HTJ2K, write_compressed_series
from pydicom import uid

from bundle.dicom import codecs, workers
from bundle.dicom.index import find_series
from bundle.dicom.volume import Volume
from bundle.errors import BundleError

SYNTAXES = [
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.RLELossless,
    uid.JPEGLossless,
    uid.JPEGLosslessSV1,
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
    HTJ2K[0],
]
SLICES = 4
QUICK, FULL = 40, 500  # cases per transfer syntax
MAX_SECONDS = 12.0  # the limit of a decoder is 10
MAX_GROWTH_BYTES = 512 << 20
PIXEL_TAGS = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """A few bytes of the header or the pixel data changed, lost, doubled or made up, or the end cut off."""
    pixels = max(content.find(tag) for tag in PIXEL_TAGS)
    pixels = pixels if pixels > 0 else 400  # deflated: behind the meta group
    low, high = ((128, pixels) if rng.random() < 0.4 else (pixels, len(content)))[:2]
    place = int(rng.integers(low, high))
    kind = rng.integers(7)
    changed = bytearray(content)
    if kind <= 2:
        for at in rng.integers(low, high, rng.integers(1, 6)):
            changed[at] ^= 1 << rng.integers(8)
    elif kind == 3:
        return content[:place]
    elif kind == 4:
        del changed[place : place + int(rng.integers(1, 64))]
    elif kind == 5:
        changed[place:place] = rng.bytes(int(rng.integers(1, 64)))
    else:
        length = int(rng.integers(1, 64))
        changed[place : place + length] = bytes([rng.choice([0, 255])]) * length
    return bytes(changed)


def read(folder: Path) -> tuple[list[Volume], bool]:
    """All volumes ([] for a refusal, which is one line), and whether anything was said about them."""
    try:
        index = find_series(folder)
        assert index.series or index.refused or index.ignored
        said = bool(index.refused or index.ignored or any(series.notes for series in index.series))
        return [series.load() for series in index.series], said
    except BundleError as error:
        assert "\n" not in str(error) and str(folder) not in str(error)
        return [], True


def verdict(volumes: list[Volume], hu: np.ndarray, k: int, *, said: bool) -> str:
    """ "refused", "right", "unseen" or "end lost" of a series whose slice k was mutated; anything else fails.

    "end lost": the first or last slice is no longer part of the series; the index names it or notes it.
    """
    if not volumes:
        return "refused"
    others = [n for n in range(hu.shape[2]) if n != k]
    for volume in volumes:
        if volume.shape[:2] == hu.shape[:2] and volume.shape[2] == len(others):
            np.testing.assert_array_equal(volume.array, hu[:, :, others])
            assert k in (0, hu.shape[2] - 1) and said, "a slice is lost, and nobody says so"
            return "end lost"
    (volume,) = volumes
    assert volume.shape == hu.shape and np.isfinite(volume.array).all()
    places = [n for n in range(hu.shape[2]) if any((volume.array[:, :, n] == hu[:, :, m]).all() for m in others)]
    np.testing.assert_array_equal(volume.array[:, :, places], hu[:, :, others])
    return "right" if np.array_equal(volume.array, hu) else "unseen"


def fuzz(folder: Path, syntax: str, *, cases: int, seed: int) -> dict[str, int]:
    hu = write_compressed_series(folder, syntax, slices=SLICES)
    paths = find_series(folder).series[0].paths
    counts = {"right": 0, "refused": 0, "unseen": 0, "end lost": 0}
    read(folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for case in range(cases):
        rng = np.random.default_rng([seed, case])
        k = int(rng.integers(SLICES))
        path = Path(paths[k])
        content = path.read_bytes()
        path.write_bytes(mutated(content, rng))
        started = time.monotonic()
        try:
            volumes, said = read(folder)
            counts[verdict(volumes, hu, k, said=said)] += 1
        except Exception as error:
            raise AssertionError(f"case {case} of seed {seed}, slice {k}") from error
        finally:
            path.write_bytes(content)
        assert time.monotonic() - started < MAX_SECONDS, f"case {case} of seed {seed}"
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert growth < MAX_GROWTH_BYTES
    return counts


def fuzz_archive(folder: Path, *, cases: int, seed: int) -> dict[str, int]:
    hu = write_compressed_series(folder / "series", uid.ExplicitVRLittleEndian, slices=SLICES)
    path = folder / "in" / "series.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member in sorted((folder / "series").iterdir()):
            archive.write(member, member.name)
    content = path.read_bytes()
    counts = {"right": 0, "refused": 0, "lost and said": 0}
    for case in range(cases):
        rng = np.random.default_rng([seed, case])
        changed = bytearray(content)
        low = int(rng.choice([0, len(content) - 400]))  # anywhere, or in the directory of the archive
        for at in rng.integers(low, len(content), rng.integers(1, 6)):
            changed[at] ^= 1 << rng.integers(8)
        path.write_bytes(changed[: int(rng.integers(1, 8 * len(changed)))])
        volumes, said = read(path.parent)
        if not volumes:
            counts["refused"] += 1
            continue
        (volume,) = volumes
        lost = SLICES - volume.shape[2]
        places = [range(SLICES)[first::step][: volume.shape[2]] for first in range(lost + 1) for step in (1, 2, 3)]
        assert any(np.array_equal(volume.array, hu[:, :, list(part)]) for part in places), f"case {case}"
        assert said or not lost, f"case {case}"
        counts["lost and said" if lost else "right"] += 1
    return counts


@pytest.fixture(autouse=True)
def _fresh_workers():
    yield
    workers.close_all()


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name)
def test_mutated_files_are_right_or_refused(tmp_path, syntax, monkeypatch):
    monkeypatch.setattr(codecs, "SECONDS", 2.0)  # a decoder that hangs is ended just the same
    counts = fuzz(tmp_path, syntax, cases=QUICK, seed=11)
    print(syntax.name, counts)
    assert counts["refused"] > 0
    if syntax == uid.JPEGLSLossless:
        assert counts["unseen"] == 0


def test_mutated_archives_are_right_or_refused(tmp_path):
    print("ZIP", fuzz_archive(tmp_path, cases=2 * QUICK, seed=13))


@pytest.mark.full
def test_thousands_of_mutated_archives_are_right_or_refused(tmp_path):
    print("ZIP", fuzz_archive(tmp_path, cases=2 * FULL, seed=14))


@pytest.mark.full
@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name)
def test_thousands_of_mutated_files_are_right_or_refused(tmp_path, syntax):
    print(syntax.name, fuzz(tmp_path, syntax, cases=FULL, seed=12))
