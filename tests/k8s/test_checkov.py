"""checkov's rules over all manifests and the Dockerfile; runs where checkov is installed (make checkov)."""

import json
import subprocess

import pytest
import yaml
from manifests import FOLDERS, K8S, ROOT, built_text, tool

CONFIG = ROOT / ".checkov.yaml"


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rendered")
    for name in FOLDERS:
        (folder / f"{name.replace('/', '-')}.yaml").write_text(built_text(name))
    return folder


def checkov(*arguments):
    # Elsewhere than here, where checkov would find the list of what is skipped by itself.
    command = [tool("checkov"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=K8S)


def failed(finished):
    """Number of the rules that were broken, with where."""
    reports = json.loads(finished.stdout)
    found = [
        one
        for report in ([reports] if isinstance(reports, dict) else reports)
        for one in report["results"]["failed_checks"]
    ]
    return {one["check_id"]: one["resource"] for one in found}


def test_nothing_is_found_but_what_is_skipped_with_a_reason(rendered):
    for what in (("-d", rendered), ("-f", K8S / "Dockerfile")):
        finished = checkov(*what, "--config-file", CONFIG)
        assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-1000:]


def test_nothing_is_skipped_that_is_not_found(rendered):
    options = ("--skip-download", "--quiet", "-o", "json", "--framework")
    found = {**failed(checkov("-d", rendered, *options, "kubernetes"))}
    found |= failed(checkov("-f", K8S / "Dockerfile", *options, "dockerfile"))
    assert found.keys() == set(yaml.safe_load(CONFIG.read_text())["skip-check"]), found


def test_a_spoiled_manifest_is_found(tmp_path):
    text = built_text("overlays/train-1gpu")
    spoiled = text.replace("readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false")
    assert spoiled != text
    (tmp_path / "job.yaml").write_text(spoiled)
    assert checkov("-d", tmp_path, "--config-file", CONFIG).returncode == 1
