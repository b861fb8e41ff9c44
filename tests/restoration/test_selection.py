"""Shares are disjoint and everything; rules keep what they say."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from phantom_series import write_phantom_series
from thick_series import write_thick
from tiny_workflows import run_tiny, write_tiny_weights

from bundle.configuration import exit_code
from bundle.data.sources import Case, Source, find_cases
from bundle.dicom.index import Refusal
from bundle.errors import BundleError, ExitCode
from bundle.restoration.selection import parse_shard, select


def made_up(count):
    cases = tuple(Case(key=f"{k:016x}", patient_key="p", files=(f"{k}.nii.gz",), label="") for k in range(count))
    return Source(cases, tuple(Refusal("", "a gap", f"folder/{k}") for k in range(count)))


@given(st.integers(0, 40), st.integers(1, 9))
def test_shares_are_disjoint_and_together_everything(count, shards):
    source = made_up(count)
    parts = [select(source, shard=f"{i}/{shards}") for i in range(shards)]
    assert sorted(case.key for part in parts for case in part.cases) == [case.key for case in source.cases]
    assert sorted(r.where for part in parts for r in part.refused) == sorted(r.where for r in source.refused)


def test_shares_are_about_even_and_do_not_depend_on_what_else_is_there():
    source = made_up(400)
    sizes = [len(select(source, shard=f"{i}/4").cases) for i in range(4)]
    assert min(sizes) > 70
    half = Source(source.cases[::2])
    assert set(select(half, shard="1/4").cases) == set(select(source, shard="1/4").cases) & set(half.cases)


def test_max_samples_counts_what_is_selected():
    source = made_up(40)
    share = select(source, shard="2/4").cases
    assert select(source, shard="2/4", max_samples=3).cases == share[:3]
    assert select(source, shard="2/4", max_samples=100).cases == share and len(share) > 3
    with pytest.raises(BundleError, match="max_samples must be a whole number, at least 1"):
        select(source, max_samples=0)


def test_max_samples_counts_what_the_rules_keep(folder):
    everything = find_cases(folder)
    last = everything.cases[-1]  # by key, the one that max_samples alone would leave out
    rule = {"a": "lung", "b": "abdomen"}[last.label]
    assert select(everything, description=rule, max_samples=1).cases == (last,)


@pytest.mark.parametrize("shard", ["4/4", "1", "-1/2", "a/b", "0/0", "1/2/3"])
def test_what_is_no_share_is_refused(shard):
    with pytest.raises(BundleError, match="shard"):
        parse_shard(shard)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("in")
    write_phantom_series(root / "a", slices=3, size=16, SeriesDescription="Chest LUNG 1mm", ConvolutionKernel="B70f")
    write_phantom_series(root / "b", slices=3, size=16, patient="b", SeriesDescription="Abdomen", SliceThickness="5")
    return root


@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        ({}, {"a", "b"}),
        ({"description": "lung"}, {"a"}),
        ({"description": "^abdomen$"}, {"b"}),
        ({"kernel": "B70|LUNG"}, {"a"}),
        ({"thickness_mm": "2-3"}, {"a"}),
        ({"thickness_mm": 5}, {"b"}),
    ],
)
def test_rules_keep_what_they_say(folder, rules, kept):
    assert {case.label for case in select(find_cases(folder), **rules).cases} == kept


@pytest.mark.parametrize("rules", [{"description": "("}, {"thickness_mm": "thin"}])
def test_rules_that_cannot_be_read_are_named(rules):
    with pytest.raises(BundleError, match="select_"):
        select(made_up(1), **rules)


@pytest.mark.parametrize("rules", [{"kernel": "nosuch"}, {"description": "chest", "thickness_mm": "4-6"}])
def test_rules_that_leave_nothing_are_an_error_and_empty_shares_are_none(folder, rules, caplog):
    source = find_cases(folder)
    for shard in (None, "0/1"):
        with pytest.raises(BundleError, match="no series fits the rules"):
            select(source, shard=shard, **rules)
    assert select(source, tolerant=True, **rules).cases == () and "no series fits the rules" in caplog.text
    shares = [select(source, shard=f"{i}/3", kernel="B70").cases for i in range(3)]
    assert sorted(map(len, shares)) == [0, 0, 1]
    assert select(Source(()), **rules).cases == (), "no folder was named yet"


def test_what_was_restored_before_is_ignored_and_a_degraded_copy_is_not(tmp_path):
    write_phantom_series(tmp_path / "in", slices=8, size=32)
    weights = write_tiny_weights(tmp_path / "model.pt", part="refiner", scale=0.05)
    run_tiny("inference.yaml", "inference", dataset_dir=tmp_path / "in", output_dir=tmp_path / "out", weights=weights)
    with pytest.raises(BundleError, match="every series was restored by this program"):
        select(find_cases(tmp_path / "out"))
    write_thick(tmp_path / "in", tmp_path / "both" / "poor", 5.0)
    shutil.copytree(tmp_path / "out", tmp_path / "both" / "out")
    selected = select(find_cases(tmp_path / "both"))
    assert [case.label.split("/")[0] for case in selected.cases] == ["poor"]
    (ignored,) = [one for one in selected.refused if "restored by this program" in one.reason]
    assert ignored.foreign and ignored.where.startswith("out/")


def test_workers_split_a_folder_and_each_writes_its_own_summary(tmp_path, folder):
    weights = write_tiny_weights(tmp_path / "model.pt", part="refiner", scale=0.05)
    out, done = tmp_path / "out", []
    for number in range(4):
        run_tiny(
            "inference.yaml", "inference", dataset_dir=folder, output_dir=out, weights=weights, shard=f"{number}/4"
        )
        assert exit_code() == ExitCode.DONE
        done += json.loads((out / f"summary_{number}_of_4.json").read_text())["series"]
    assert sorted(done) == sorted(case.key for case in find_cases(folder).cases)
    assert len(list(out.glob("*/summary.json"))) == 2 and len(np.unique(done)) == 2
