"""The manifest of the shipped weights' series: sides, keys and checksums."""

import json

import pytest
import yaml
from phantom_series import write_phantom_series
from script_modules import load_script
from training_fixtures import ROOT

from bundle.dicom.index import read_volume

CT = ROOT.parent / "shared" / "data" / "ct"
MANIFEST = ROOT / "models" / "manifest.json"


@pytest.fixture(scope="module")
def script():
    return load_script("manifest")


def names(side):
    return {name for name, entry in json.loads(MANIFEST.read_text())["series"].items() if entry["side"] == side}


def test_the_held_out_patients_are_the_manifests():
    config = yaml.safe_load((ROOT / "configs" / "held_out.yaml").read_text())
    assert set(config["validation_folders"]) == names("validation") and names("train")
    assert config["gaps"] == json.loads(MANIFEST.read_text())["gaps"]


@pytest.mark.parametrize("note", sorted((ROOT / "models").glob("*data.json")), ids=lambda path: path.stem)
def test_the_series_of_the_training_runs_are_on_the_side_that_the_manifest_says(note):
    series = json.loads(MANIFEST.read_text())["series"].values()
    sides = {entry["key"]: entry["side"] for entry in series}
    told = json.loads(note.read_text())
    for side in ("train", "validation"):
        assert told[side] and all(sides[entry["series"]] == side for entry in told[side])


def test_a_series_whose_hu_are_others_is_found(script, tmp_path):
    for name in ("a", "b"):
        write_phantom_series(tmp_path / name, slices=4, seed=ord(name), series=name)
    found = script.found_series(tmp_path, gaps="refuse")
    manifest = {"series": {name: dict(entry) for name, entry in found.items()}}
    assert script.differences(manifest, found) == []
    volume = read_volume(str(tmp_path / "b"))
    assert script.hu_digest(volume) == found["b"]["hu_sha256"] != found["a"]["hu_sha256"]
    manifest["series"]["b"]["hu_sha256"] = "0" * 64
    manifest["series"]["c"] = manifest["series"]["a"]
    assert script.differences(manifest, found) == ["b: another hu_sha256", "c: missing"]


@pytest.mark.skipif(not CT.is_dir(), reason="the real series are not here")
def test_the_real_series_are_those_of_the_manifest(script):
    manifest = json.loads(MANIFEST.read_text())
    small = ("totalseg_mct", "cptac_pda_00189")
    found = {name: found for name in small for found in script.found_series(CT / name, gaps="refuse").values()}
    assert script.differences({"series": {name: manifest["series"][name] for name in small}}, found) == []
