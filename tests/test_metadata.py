import json
import re
from importlib.metadata import version
from pathlib import Path

import jsonschema
import pytest

import bundle
from bundle.configuration import bundle_root

ROOT = Path(bundle_root())
METADATA = ROOT / "configs" / "metadata.json"
RULES = Path(__file__).parent / "assets" / "meta_schema_20240725_rules.json"


@pytest.fixture
def metadata():
    return json.loads(METADATA.read_text())


def test_valid(metadata):
    rules = json.loads(RULES.read_text())
    jsonschema.Draft202012Validator.check_schema(rules)
    jsonschema.validate(metadata, rules)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda m: m.pop("task"),
        lambda m: m.update(references="one"),
        lambda m: m["network_data_format"]["inputs"]["image"].pop("dtype"),
        lambda m: m["network_data_format"]["outputs"]["pred"].update(num_channels="1"),
        lambda m: m["network_data_format"].pop("outputs"),
    ],
)
def test_the_rules_refuse(metadata, spoil):
    spoil(metadata)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(metadata, json.loads(RULES.read_text()))


def test_monais_own_check(tmp_path):
    from monai.bundle import verify_metadata

    # MONAI downloads the schema unless the file is already there.
    verify_metadata(meta_file=str(METADATA), filepath=str(RULES))
    broken = tmp_path / "metadata.json"
    broken.write_text(json.dumps({"schema": "unused"}))
    with pytest.raises(ValueError, match="Failed validating"):
        verify_metadata(meta_file=str(broken), filepath=str(RULES))


def test_versions_are_what_was_tested(metadata):
    constraints = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert metadata["version"] == bundle.__version__
    assert metadata["version"] in metadata["changelog"]
    assert metadata["monai_version"] == constraints["monai"]
    assert metadata["pytorch_version"] == constraints["torch"]
    assert metadata["numpy_version"] == constraints["numpy"]
    constraints = {name.lower(): pinned for name, pinned in constraints.items()}
    for name, pinned in metadata["required_packages_version"].items():
        assert constraints[name] == pinned, name


def test_what_workflows_import_is_required(metadata):
    """Consumers of the bundle install this list and no more."""
    lines = (ROOT / "requirements.txt").read_text()
    needed = {name.lower() for name in re.findall(r"^([\w.-]+)[=<>]", lines, re.MULTILINE)}
    named = {*metadata["required_packages_version"], "torch", "monai", "numpy"}
    assert needed - named == {
        "dicomweb-client",  # python -m bundle pacs
        "requests",  # the same; and monai.bundle's downloads
        "datasets",  # streaming from a hub
        "safetensors",  # scripts/pack_weights.py
        "jsonschema",  # monai.bundle's check of the metadata
    }


def test_constraints_cover_the_requirements():
    lines = (ROOT / "requirements.txt").read_text() + (ROOT / "requirements-dev.txt").read_text()
    names = re.findall(r"^([\w.-]+)[=<>]", lines, re.MULTILINE)
    constraints = {name.lower().replace("_", "-") for name in re.findall(r"^([\w.-]+)==", _constraints(), re.MULTILINE)}
    assert {name for name in names if name.lower().replace("_", "-") not in constraints} == set()
    assert "+" not in _constraints()
    assert version("monai")


def test_every_requirement_says_what_it_is_for():
    for name in ("requirements.txt", "requirements-dev.txt"):
        for line in (ROOT / name).read_text().splitlines():
            assert "#" in line


def _constraints():
    return (ROOT / "constraints.txt").read_text()
