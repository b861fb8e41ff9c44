"""The manifests: what a cluster would refuse, and what no schema sees."""

import copy
import json
import re
import shutil

import pytest
import yaml
from manifest_rules import problems
from manifests import (
    FOLDERS,
    K8S,
    WITHOUT_WORKLOAD,
    WORKLOADS,
    built,
    built_text,
    jobs_of,
    kustomized,
    load,
    ours,
    pods_of,
)

from bundle.overrides import load_config_file

# Kinds of operators, which Kubernetes' own schemas do not know.
OPERATORS = {"JobSet": "JobsetV1alpha2JobSet", "TrainJob": "TrainerV1alpha1TrainJob"}
OPERATORS |= {"TrainingRuntime": "TrainerV1alpha1TrainingRuntime"}


def with_storage(folder):
    return [*built(folder), *built("storage")]


# ---- rules --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", FOLDERS)
def test_rules(folder):
    documents = with_storage(folder)
    assert {document["metadata"]["name"]: problems(document, documents) for document in built(folder)} == {
        document["metadata"]["name"]: [] for document in built(folder)
    }


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_starts_one_workload_of_ours_and_never_holds_the_volume(folder):
    documents = built(folder)
    running = [document for document in documents if any(ours(pod) for pod in pods_of(document))]
    assert len(running) == (folder not in WITHOUT_WORKLOAD)
    claims = [document["metadata"]["name"] for document in documents if document["kind"] == "PersistentVolumeClaim"]
    # kubectl delete -k of a workload must not take the data with it.
    assert ("ct-enhance-storage" in claims) == (folder in ("storage", "overlays/storage-shared"))


@pytest.mark.parametrize("folder", WORKLOADS)
def test_pods_at_once_share_a_node_or_the_volume(folder):
    """A volume of one node keeps pods on others waiting for ever (Multi-Attach)."""
    shared = "storage-shared" in (K8S / folder / "kustomization.yaml").read_text()
    for job in (job for document in built(folder) for job in jobs_of(document)):
        affinity = job["template"]["spec"].get("affinity", {}).get("podAffinity")
        assert (affinity is not None) == (job.get("parallelism", 1) > 1 and not shared)
        if affinity:
            (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]
            assert term["topologyKey"] == "kubernetes.io/hostname"
            assert term["labelSelector"]["matchLabels"].items() <= job["template"]["metadata"]["labels"].items()


TRAIN, INFERENCE, NIGHTLY = "overlays/train-1gpu", "inference", "nightly"
SPOILED = {
    "status parsed as a boolean": (TRAIN, "spec podFailurePolicy rules 0 onPodConditions 0 status", True),
    "no status": (TRAIN, "spec podFailurePolicy rules 0 onPodConditions 0", {"type": "DisruptionTarget"}),
    "restart in place": (TRAIN, "spec template spec restartPolicy", "OnFailure"),
    "two pods at once": (TRAIN, "spec podReplacementPolicy", "TerminatingOrFailed"),
    "misspelt enum": (TRAIN, "spec podReplacementPolicy", "failed"),
    "unknown container": (TRAIN, "spec podFailurePolicy rules 1 onExitCodes containerName", "main"),
    "defects not retried": (TRAIN, "spec podFailurePolicy rules 2 onExitCodes values", [2, 70]),
    "short grace": (TRAIN, "spec template spec terminationGracePeriodSeconds", 30),
    "root": (TRAIN, "spec template spec securityContext runAsUser", 0),
    "token": (TRAIN, "spec template spec automountServiceAccountToken", True),
    "writable root": (TRAIN, "spec template spec containers 0 securityContext readOnlyRootFilesystem", False),
    "privileges": (TRAIN, "spec template spec containers 0 securityContext allowPrivilegeEscalation", True),
    "misspelt volume": (TRAIN, "spec template spec volumes 0 name", "store"),
    "no mount point": (TRAIN, "spec template spec containers 0 volumeMounts 0 mountPath", "/data"),
    "missing claim": (TRAIN, "spec template spec volumes 0 persistentVolumeClaim claimName", "other"),
    "env parsed as a number": (TRAIN, "spec template spec containers 0 env 2 value", 1),
    "other image": (TRAIN, "spec template spec containers 0 image", "ct-enhance:latest"),
    "more GPUs than asked for": (TRAIN, "spec template spec containers 0 resources limits nvidia.com/gpu", 2),
    "index limit without indices": (INFERENCE, "spec completionMode", "NonIndexed"),
    "a share that nobody takes": (INFERENCE, "spec completions", 4),
    "more pods than shares": (INFERENCE, "spec parallelism", 9),
    "nodes that wait for ever": ("overlays/train-multi-node", "spec completions", 3),
    "processes without a GPU": ("overlays/train-multi-gpu", "spec template spec containers 0 args 2", "8"),
    "killed by torchrun": ("overlays/train-multi-gpu", "spec template spec containers 0 env 0 value", "30"),
    "a set that never gives up": ("overlays/train-jobset", "spec failurePolicy rules 0 action", "RestartJobSet"),
    "nights that overlap": (NIGHTLY, "spec concurrencyPolicy", "Allow"),
    "no time": (NIGHTLY, "spec schedule", "nightly"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_rules_find_what_is_spoiled(name):
    folder, trail, value = SPOILED[name]
    documents = with_storage(folder)
    (document,) = [one for one in documents if any(True for _ in jobs_of(one))]
    spoiled = copy.deepcopy(document)
    *parents, last = [int(part) if part.isdigit() else part for part in trail.split()]
    node = spoiled
    for part in parents:
        node = node[part]
    assert node[last] != value
    node[last] = value
    assert problems(document, documents) == [] != problems(spoiled, documents)


# ---- kustomize, schemas -------------------------------------------------------------------------------------


def kustomizations():
    return {path.parent: load(path)[0] for path in sorted(K8S.rglob("kustomization.yaml"))}


def named_files(folder, kustomization):
    files = [patch["path"] for patch in kustomization.get("patches", ())]
    for generator in ("configMapGenerator", "secretGenerator"):
        files += [name for item in kustomization.get(generator, ()) for name in item["files"]]
    files += [name for name in kustomization.get("resources", ()) if name.endswith(".yaml")]
    files += kustomization.get("configurations", ())
    return {(folder / name.rpartition("=")[2]).resolve() for name in files}


def test_no_manifest_is_left_over():
    named = set().union(*(named_files(folder, one) for folder, one in kustomizations().items()))
    assert {path for path in K8S.rglob("*.yaml") if path.name != "kustomization.yaml"} <= named


def test_every_component_is_used_by_an_overlay():
    used = {(folder / name).resolve() for folder, one in kustomizations().items() for name in one.get("components", ())}
    assert used == {path.parent for path in (K8S / "components").rglob("kustomization.yaml")}


@pytest.mark.parametrize("path", sorted(K8S.rglob("*.yaml")), ids=lambda path: path.relative_to(K8S).as_posix())
def test_every_file_is_yaml_without_duplicate_keys(path):
    for document in path.read_text().split("\n---\n"):
        assert yaml.safe_load(document)
    if "\n---\n" not in path.read_text():
        assert load_config_file(path)


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("version", ["1.34", "1.37"])
def test_schemas(folder, version):
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed").validate
    for document in built(folder):
        if document["kind"] not in OPERATORS:
            validate(document, version, strict=True)


def lost(before, after, trail=""):
    """Keys that a model did not take over: misspelt ones."""
    if isinstance(before, dict):
        after = after if isinstance(after, dict) else {}
        for key, value in before.items():
            if key not in after:
                yield f"{trail}/{key}"
            else:
                yield from lost(value, after[key], f"{trail}/{key}")
    elif isinstance(before, list):
        for k, value in enumerate(before):
            yield from lost(value, after[k], f"{trail}/{k}")


def operator_documents():
    return [one for folder in WORKLOADS for one in built(folder) if one["kind"] in OPERATORS]


def parsed_by_model(document):
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="kubeflow-trainer-api is not installed")
    return getattr(models, OPERATORS[document["kind"]]).from_dict(document).to_dict()


def test_models_of_the_operators_take_every_field():
    documents = operator_documents()
    assert {document["kind"] for document in documents} == set(OPERATORS)
    for document in documents:
        assert list(lost(document, parsed_by_model(document))) == []


def test_models_of_the_operators_lose_a_misspelt_field():
    (jobset,) = [document for document in operator_documents() if document["kind"] == "JobSet"]
    jobset["spec"]["failurePolicies"] = jobset["spec"].pop("failurePolicy")
    assert list(lost(jobset, parsed_by_model(jobset))) == ["/spec/failurePolicies"]


@pytest.fixture
def copied(tmp_path):
    """A copy of all folders, to change."""
    return shutil.copytree(K8S, tmp_path / "k8s")


def test_what_is_commented_out_builds(copied):
    """The image's place and the node's GPU, as a user would switch them on."""
    folder = copied / "overlays" / "train-1gpu"
    head, mark, block = (folder / "kustomization.yaml").read_text().partition("# Where your image is:\n")
    lines = [line.removeprefix("# ") for line in block.splitlines() if not line.startswith("# Which GPU")]
    (folder / "kustomization.yaml").write_text("\n".join([head, mark, *lines]))
    (pod,) = [pod for document in yaml.safe_load_all(kustomized(folder)) for pod in pods_of(document)]
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "Tesla-V100-SXM2-16GB"}
    assert pod["containers"][0]["image"].startswith("REGISTRY/ct-enhance:")


def test_other_overrides_have_another_name(copied):
    """A Job keeps the options that it was started with; the same ones have the same name in every build."""
    text = kustomized(copied / "train")
    assert text == built_text("train")
    with (copied / "base" / "overrides" / "train.yaml").open("a") as file:
        file.write("seed: 1\n")
    names = [set(re.findall(r"ct-enhance-overrides-\w{10}", one)) for one in (text, kustomized(copied / "train"))]
    assert [len(one) for one in names] == [1, 1] and names[0] != names[1]


# ---- network ------------------------------------------------------------------------------------------------


def test_every_pod_of_ours_is_closed_off():
    (policy,) = load(K8S / "base" / "network-policy.yaml")
    spec = policy["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"] and spec["ingress"] == spec["egress"] == []
    selector = spec["podSelector"]["matchLabels"]
    assert selector
    for folder in WORKLOADS:
        assert policy in built(folder)
        for document in built(folder):
            for labels in labels_of_pods(document):
                assert selector.items() <= labels.items(), folder


def labels_of_pods(document):
    if document["kind"] == "Pod":
        yield document["metadata"]["labels"]
    elif document["kind"] == "StatefulSet":
        yield document["spec"]["template"]["metadata"]["labels"]
    yield from (job["template"]["metadata"]["labels"] for job in jobs_of(document))


@pytest.mark.parametrize("folder", WORKLOADS)
def test_openings_are_for_pods_that_exist(folder):
    """A further policy opens something only for pods that the folder starts."""
    documents = built(folder)
    labels = [one for document in documents for one in labels_of_pods(document)]
    for document in documents:
        if document["kind"] == "NetworkPolicy":
            selector = document["spec"]["podSelector"]["matchLabels"]
            assert any(selector.items() <= one.items() for one in labels)


def test_who_sends_to_the_pacs_gets_in():
    """Scanners by DICOM, archives by DICOMweb: each port of the Service is open, and by HTTP only with a password."""
    documents = built("overlays/pacs")
    (service,) = [one for one in documents if one["kind"] == "Service"]
    selector = service["spec"]["selector"]
    policies = [one["spec"] for one in documents if one["kind"] == "NetworkPolicy"]
    (own,) = [one for one in policies if one["podSelector"]["matchLabels"] == selector]
    everybody = {port["port"] for rule in own["ingress"] if "from" not in rule for port in rule["ports"]}
    assert everybody == {one["port"] for one in service["spec"]["ports"]} == {4242, 8042}
    (settings,) = [one["data"]["orthanc.json"] for one in documents if "orthanc.json" in one.get("data", ())]
    assert json.loads(settings)["AuthenticationEnabled"] is True
