"""Every folder before a real API server (server-side dry run), where KUBEBUILDER_ASSETS names one; else skipped."""

import copy

import pytest
import yaml
from api_server import running
from manifests import FOLDERS, built

# Kinds of operators: the server knows them only where their definitions are installed.
OF_OPERATORS = {"JobSet", "TrainJob", "TrainingRuntime"}
RESTRICTED = [f"pod-security.kubernetes.io/{mode}=restricted" for mode in ("enforce", "warn")]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("api")) as found:
        labelled = found.kubectl("label", "namespace", "default", *RESTRICTED)
        assert labelled.returncode == 0, labelled.stderr
        yield found


def of_kubernetes(folder):
    return [one for one in built(folder) if one["kind"] not in OF_OPERATORS]


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_server_takes_it_without_a_warning(server, folder):
    finished = server.tried(yaml.safe_dump_all(of_kubernetes(folder)))
    assert finished.returncode == 0, finished.stderr
    # Pods in breach of the restricted standard are refused, templates of such pods only warned of.
    assert "Warning" not in finished.stderr, finished.stderr
    assert len(finished.stdout.splitlines()) == len(of_kubernetes(folder))


SPOILED = {
    "misspelt enum": ("podReplacementPolicy", "failed"),
    "index limit without indices": ("backoffLimitPerIndex", 1),
    "unknown field": ("backofLimit", 1),
}


@pytest.mark.parametrize("name", SPOILED)
def test_the_server_refuses_what_is_spoiled(server, name):
    (job,) = [copy.deepcopy(one) for one in built("overlays/train-1gpu") if one["kind"] == "Job"]
    key, value = SPOILED[name]
    job["spec"][key] = value
    finished = server.tried(yaml.safe_dump(job))
    assert finished.returncode != 0 and key in finished.stderr


def test_the_server_warns_of_a_pod_that_is_not_restricted(server):
    (job,) = [copy.deepcopy(one) for one in built("overlays/train-1gpu") if one["kind"] == "Job"]
    job["spec"]["template"]["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    assert "would violate PodSecurity" in server.tried(yaml.safe_dump(job)).stderr
