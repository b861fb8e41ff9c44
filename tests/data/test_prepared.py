import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
from training_fixtures import CountingTransform, make_cases, prepare

from bundle.data.prepared import PreparedCase, prepare_cases
from bundle.errors import BundleError, ExitCode


def run(cases, folder, transform=None, **recipe):
    transform = transform or CountingTransform(size=32, slices=4)
    found, skipped = prepare_cases(
        cases, transform=transform, cache_dir=folder, recipe=recipe, realisations=transform.realisations
    )
    return found, skipped, transform.calls


def test_second_preparation_reads_nothing_again(tmp_path):
    cases = make_cases(tmp_path / "files", ["a", "b"])
    first, _, calls = run(cases, tmp_path / "cache")
    again, _, calls_again = run(cases, tmp_path / "cache")
    assert (calls, calls_again) == (2, 0)
    assert again == first


def test_only_what_is_new_is_prepared(tmp_path):
    run(make_cases(tmp_path / "files", ["a", "b"]), tmp_path / "cache")
    assert run(make_cases(tmp_path / "files", ["a", "b", "c"]), tmp_path / "cache")[2] == 1


def test_content_recipe_and_realisations_name_the_folder(tmp_path):
    cases = make_cases(tmp_path / "files", ["a"])
    folders = {run(cases, tmp_path / "cache")[0][0].folder}
    folders.add(run(cases, tmp_path / "cache", seed=1)[0][0].folder)
    folders.add(run(cases, tmp_path / "cache", CountingTransform(size=32, slices=4, realisations=1))[0][0].folder)
    Path(cases[0].files[0]).write_text("changed")
    folders.add(run(cases, tmp_path / "cache")[0][0].folder)
    assert len(folders) == 4 and all((folder / "case.json").is_file() for folder in folders)


@pytest.mark.parametrize("after", [1, 3, 5])
def test_interrupted_preparation_leaves_no_entry(tmp_path, monkeypatch, after):
    cases = make_cases(tmp_path / "files", ["a"])
    save, written = np.save, []

    def interrupted(*arguments, **options):
        written.append(save(*arguments, **options))
        if len(written) == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(cases, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.undo()
    assert run(cases, tmp_path / "cache")[2] == 1


def test_a_killed_preparation_is_begun_again(tmp_path):
    """What a kill leaves is under another name, and an entry counts only when its last file is there."""
    cases = make_cases(tmp_path / "files", ["a"])
    folder = run(cases, tmp_path / "cache")[0][0].folder
    (folder / "case.json").unlink()
    found, _, calls = run(cases, tmp_path / "cache")
    assert calls == 1 and found[0].image_hu.shape == (32, 32, 4)


def test_whole_hu_are_int16_and_exact(tmp_path):
    (case,) = prepare(tmp_path, size=32, slices=4)
    assert case.image_hu.dtype == np.int16
    expected = CountingTransform(size=32, slices=4)({"image": ["one"]})["image"][0].numpy()
    assert np.array_equal(case.image_hu, expected)


def test_fractions_of_hu_stay(tmp_path):
    (case,) = prepare(tmp_path, size=32, slices=4, fraction=0.25)
    assert case.image_hu.dtype == np.float32
    expected = CountingTransform(size=32, slices=4, fraction=0.25)({"image": ["one"]})["image"][0].numpy()
    assert np.array_equal(case.image_hu, expected)


def test_described_as_it_is(tmp_path):
    (case,) = prepare(tmp_path, size=32, slices=4, spacing=(0.7, 0.8, 2.5))
    assert case.shape == (32, 32, 4) and case.realisations == 2
    assert case.spacing_mm == pytest.approx((0.7, 0.8, 2.5))
    assert json.loads((case.folder / "case.json").read_text(), parse_constant=pytest.fail)
    for realisation in range(2):
        quantum, electronic = case.noise(realisation)
        assert quantum.shape == electronic.shape == case.shape and quantum.dtype == np.float16
    assert not np.array_equal(case.noise(0)[0], case.noise(1)[0])


def test_noise_level_grows_as_the_dose_falls_and_adds_in_quadrature(tmp_path):
    (case,) = prepare(tmp_path)
    slices = slice(2, 9)
    assert np.array_equal(case.noise_level(1.0, slices), np.array(case.noise_hu, np.float32)[slices])
    levels = [case.noise_level(dose, slices) for dose in (1.0, 0.5, 0.25, 0.1)]
    assert all((low < high).all() for low, high in itertools.pairwise(levels))
    quantum, electronic = (np.array(x)[slices] for x in (case.quantum_hu, case.electronic_hu))
    added = levels[2].astype(float) ** 2 - levels[0].astype(float) ** 2
    assert np.allclose(added, 3 * quantum**2 + 15 * electronic**2, rtol=1e-4)
    assert np.corrcoef(quantum, np.linspace(1, 3, 12)[slices])[0, 1] > 0.9  # the noise grows with the slice


def test_noise_levels_are_finite_in_slices_of_air(tmp_path):
    class Air(CountingTransform):
        def __call__(self, data):
            result = super().__call__(data)
            result["image"][:, :, :, 1:] = -1000
            return result

    found, _, _ = run(make_cases(tmp_path, ["a"]), tmp_path / "cache", Air(size=32, slices=4))
    assert np.isfinite(found[0].noise_level(0.1, slice(0, 4))).all()


def test_a_bad_case_is_skipped_with_its_reason(tmp_path):
    cases = make_cases(tmp_path / "files", ["good", "bad", "worse"])
    wrapped = RuntimeError("applying transform")
    wrapped.__cause__ = BundleError("slices are missing")
    transform = CountingTransform(size=32, slices=4, fail={"bad": BundleError("no HU"), "worse": wrapped})
    told = []
    found, skipped = prepare_cases(
        cases,
        transform=transform,
        cache_dir=tmp_path / "cache",
        recipe={},
        realisations=2,
        progress=lambda *now: told.append(now),
    )
    assert [case.key for case in found] == ["key-good"]
    assert skipped == {"key-bad": "no HU", "key-worse": "slices are missing"}
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_nothing_but_bad_cases(tmp_path):
    transform = CountingTransform(fail={"bad": BundleError("no HU")})
    with pytest.raises(BundleError, match="no case could be prepared: no HU"):
        run(make_cases(tmp_path / "files", ["bad"]), tmp_path / "cache", transform)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), TypeError("a defect")])
def test_a_full_disk_or_a_defect_is_not_a_bad_case(tmp_path, error):
    cases = make_cases(tmp_path / "files", ["good", "bad"])
    with pytest.raises(type(error)):
        run(cases, tmp_path / "cache", CountingTransform(size=32, slices=4, fail={"bad": error}))
    assert ExitCode.IO == 74


def test_prepared_cases_travel_to_workers(tmp_path):
    import pickle

    (case,) = prepare(tmp_path, size=32, slices=4)
    copy = pickle.loads(pickle.dumps(case))
    assert isinstance(copy, PreparedCase) and np.array_equal(copy.image_hu, case.image_hu)
    assert os.path.commonpath([copy.folder, tmp_path]) == str(tmp_path)
