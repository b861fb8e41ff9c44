import json
import multiprocessing
import os
import resource
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from training_fixtures import CountingTransform, PairTransform, make_cases, prepare

from bundle.data import prepared
from bundle.data.prepared import PreparedCase, prepare_cases
from bundle.errors import BundleError, ExitCode


def entries(cache):
    """What lies in a cache beside its locks."""
    return [path for path in cache.iterdir() if path.name != prepared._LOCKS]


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
    save, written = prepared._save, []

    def interrupted(*arguments):
        written.append(save(*arguments))
        if len(written) == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(prepared, "_save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(cases, tmp_path / "cache")
    assert entries(tmp_path / "cache") == []
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


def test_noise_levels_are_finite_in_slices_of_air(tmp_path):
    class Air(CountingTransform):
        def __call__(self, data):
            result = super().__call__(data)
            result["image"][:, :, :, 1:] = -1000
            return result

    found, _, _ = run(make_cases(tmp_path, ["a"]), tmp_path / "cache", Air(size=32, slices=4))
    assert np.isfinite([found[0].noise_hu, found[0].quantum_hu, found[0].electronic_hu]).all()


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


def test_a_defect_is_not_a_bad_case(tmp_path):
    cases = make_cases(tmp_path / "files", ["good", "bad"])
    with pytest.raises(TypeError):
        run(cases, tmp_path / "cache", CountingTransform(size=32, slices=4, fail={"bad": TypeError("a defect")}))


def limited_prepare(cases, cache, most_bytes):
    """Stands for a full disk: no file may grow beyond `most_bytes`."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    try:
        run(cases, cache)
    except BundleError as error:
        os._exit(error.exit_code if "the disk is full" in str(error) and "\n" not in str(error) else 1)
    os._exit(0)


@pytest.mark.parametrize(("most_bytes", "code"), [(4096, ExitCode.IO), (1 << 20, ExitCode.DONE)])
def test_a_full_disk_is_one_line_and_leaves_no_entry(tmp_path, most_bytes, code):
    cases = make_cases(tmp_path / "files", ["a"])
    process = multiprocessing.get_context("fork").Process(
        target=limited_prepare, args=(cases, tmp_path / "cache", most_bytes)
    )
    process.start()
    process.join(60)
    assert process.exitcode == code
    assert len(entries(tmp_path / "cache")) == (code == ExitCode.DONE)


class SlowTransform(CountingTransform):
    """Takes its time and notes each call in a folder that all processes share."""

    def __init__(self, notes, **settings):
        super().__init__(size=32, slices=4, **settings)
        self.notes = notes

    def __call__(self, data):
        result = super().__call__(data)
        (self.notes / f"{Path(data['image'][0]).name}-{os.getpid()}").touch()
        time.sleep(0.3)
        return result


def test_processes_share_the_work_and_none_does_it_twice(tmp_path):
    (tmp_path / "notes").mkdir()
    cases = make_cases(tmp_path / "files", list("abcdef"))
    settings = {"cache_dir": tmp_path / "cache", "recipe": {}, "realisations": 2}
    transform = SlowTransform(tmp_path / "notes")
    context = multiprocessing.get_context("fork")
    others = [
        context.Process(target=prepare_cases, args=(cases,), kwargs={"transform": transform, **settings})
        for _ in range(2)
    ]
    for process in others:
        process.start()
    found, _ = prepare_cases(cases, transform=transform, **settings)
    for process in others:
        process.join(60)
        assert process.exitcode == 0
    notes = sorted(path.name for path in (tmp_path / "notes").iterdir())
    assert [note[0] for note in notes] == list("abcdef"), "each case was prepared once"
    assert len({note.partition("-")[2] for note in notes}) > 1, "by more than one process"
    assert [case.key for case in found] == [case.key for case in cases]


def test_a_kill_in_the_middle_frees_the_lock_and_its_leftovers_are_removed(tmp_path):
    (tmp_path / "notes").mkdir()
    cases = make_cases(tmp_path / "files", ["a"])

    def die(*_):
        (tmp_path / "notes" / "writing").touch()
        os.kill(os.getpid(), signal.SIGKILL)

    def work():
        prepared._smallest_exact = die
        run(cases, tmp_path / "cache")

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL and (tmp_path / "notes" / "writing").exists()
    assert [path.suffix for path in entries(tmp_path / "cache")] == [".part"]
    found, _, calls = run(cases, tmp_path / "cache")
    assert calls == 1 and [path.name for path in entries(tmp_path / "cache")] == [found[0].folder.name]


def test_a_pair_keeps_its_partner_and_the_partners_content_counts(tmp_path):
    (case,) = make_cases(tmp_path / "files", ["a"])
    partner = tmp_path / "partner"
    partner.write_text("one")
    pair = replace(case, poor_files=(str(partner),))
    (found,), _, _ = run([pair], tmp_path / "cache", PairTransform(size=32, slices=4, realisations=0))
    assert found.paired and found.realisations == 0
    assert np.array_equal(found.poor_hu, found.image_hu - 7) and len(found.poor_noise_hu) == 4
    partner.write_text("two")
    (other,), _, _ = run([pair], tmp_path / "cache", PairTransform(size=32, slices=4, realisations=0))
    assert other.folder != found.folder


def test_prepared_cases_travel_to_workers(tmp_path):
    import pickle

    (case,) = prepare(tmp_path, size=32, slices=4)
    copy = pickle.loads(pickle.dumps(case))
    assert isinstance(copy, PreparedCase) and np.array_equal(copy.image_hu, case.image_hu)
    assert os.path.commonpath([copy.folder, tmp_path]) == str(tmp_path)
