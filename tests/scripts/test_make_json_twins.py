import json
from pathlib import Path

import pytest
from script_modules import load_script

from bundle.errors import BundleError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script():
    return load_script("make_json_twins")


def test_the_configs_twins_are_up_to_date(script):
    assert script.stale(ROOT / "configs") == []


def test_writes_what_the_yaml_says(script, tmp_path):
    (tmp_path / "a.yaml").write_text("x: [1, 2.0e-4, {b: '@c'}]\n")
    assert script.stale(tmp_path) == ["a.json"]
    for twin, text in script.twins(tmp_path):
        twin.write_text(text)
    assert script.stale(tmp_path) == []
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [1, 2.0e-4, {"b": "@c"}]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: 1e-4\n", "lr is the text '1e-4'"),
        ("a: 1\na: 2\n", "duplicate key"),
        ("day: 2024-01-01\n", "cannot be written"),
        ("x: .nan\n", "cannot be written"),
        ("x: {0: a}\n", "keys that are not text"),
    ],
)
def test_refuses(script, tmp_path, text, message):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(BundleError, match=message):
        script.twin_text(tmp_path / "a.yaml")
