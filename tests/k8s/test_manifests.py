"""The manifests: what a cluster would refuse, what no schema sees, and whether the commands are the bundle's."""

import copy
import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
import yaml
from manifest_rules import problems
from manifests import (
    FOLDERS,
    K8S,
    OVERRIDES,
    ROOT,
    WITHOUT_WORKLOAD,
    built,
    built_text,
    config_map,
    environment,
    expanded,
    jobs_of,
    load,
    ours,
    pods_of,
    tool,
)
from pod_simulator import size_in_bytes

from bundle.commands import main, pacs
from bundle.errors import BundleError, find_bundle_error
from bundle.overrides import CommandLine, check_options, load_config, load_config_file, parse_command_line

PET = ("NNODES", "NODE_RANK", "NPROC_PER_NODE", "MASTER_ADDR", "MASTER_PORT")  # set by Kubeflow Trainer
WORKLOADS = [folder for folder in FOLDERS if folder not in WITHOUT_WORKLOAD]
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


# ---- commands -----------------------------------------------------------------------------------------------


@cache
def containers(folder):
    """The containers of a folder that run the bundle."""
    return [c for document in built(folder) for pod in pods_of(document) for c in ours(pod) if "args" in c]


def run_line(folder, target):
    """What `run` gets in a folder's container, with this checkout and the folder's overrides in their places."""
    for name, text in config_map(built(folder)).items():
        (target / name).write_text(text)
    (container,) = containers(folder)
    assert container["command"] == ["python", "-m", "bundle"] and container["args"][0] in main._COMMANDS
    given = {"JOB_COMPLETION_INDEX": "0"} | {f"PET_{name}": "1" for name in PET}
    arguments = expanded(container["args"], given | environment(container))
    assert "$(" not in " ".join(arguments)
    arguments = arguments[arguments.index("run") + 1 :]  # a launcher's own options stand before
    arguments = [argument.replace("configs/", f"{ROOT}/configs/") for argument in arguments]
    return parse_command_line([argument.replace(f"{OVERRIDES}/", f"{target}/") for argument in arguments])


RUNNING = [folder for folder in WORKLOADS if "interactive" not in folder and folder != "overlays/pacs"]
LAUNCHED = [folder for folder in RUNNING if "multi" in folder or folder.endswith(("jobset", "trainjob"))]


@pytest.mark.parametrize("folder", RUNNING)
def test_every_option_exists_in_the_config(folder, tmp_path):
    line = run_line(folder, tmp_path)
    config = load_config(line.config_files)
    assert len(line.positionals) == 1 and line.positionals[0] in config
    check_options(line.options, config)
    assert {"dataset_dir", "output_dir"} <= line.options.keys()
    # The overrides are those of the config.
    assert Path(line.config_files[0]).name == Path(line.options["args_file"]).name


def test_the_worker_of_the_pacs_loop_takes_its_options(tmp_path):
    (container,) = containers("overlays/pacs")
    for name, text in config_map(built("overlays/pacs")).items():
        (tmp_path / name).write_text(text)
    command, *arguments = container["args"]
    line = parse_command_line([argument.replace(OVERRIDES, str(tmp_path)) for argument in arguments])
    assert command == "pacs" and not line.positionals
    own = {key: value for key, value in line.options.items() if key in pacs.OPTIONS}
    assert {"url", "work_dir", "settle_seconds"} == own.keys()
    check_options(line.options.keys() - own.keys(), load_config([ROOT / "configs" / "inference.yaml"]))
    assert line.options["weights_file"] == run_line("inference", tmp_path).options["weights_file"]
    (service,) = [one for one in built("overlays/pacs") if one["kind"] == "Service"]
    name, port = re.fullmatch(r"http://([\w-]+):(\d+)/dicom-web", own["url"]).groups()
    assert service["metadata"]["name"] == name and int(port) in {one["port"] for one in service["spec"]["ports"]}


@pytest.mark.parametrize("path", sorted(K8S.rglob("overrides/*.yaml")), ids=lambda p: p.relative_to(K8S).as_posix())
def test_overrides_are_keys_of_the_config(path):
    launched = f"overlays/{path.parents[1].name}" in LAUNCHED
    files = [ROOT / "configs" / path.name] + [ROOT / "configs" / "multi_gpu.yaml"] * launched
    check_options(load_config_file(path), load_config(files))


@pytest.fixture
def on_a_v100(monkeypatch):
    """A machine with the least GPU that the overlays are for, as far as checks before the first step ask."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_70"])


def check_values(line):
    """What a run checks of its settings before it reads data: ranges, modes, presets, and whether patches fit."""
    from monai.bundle import ConfigWorkflow

    from bundle.training.limits import require_ranges

    options = {key: value for key, value in line.options.items() if key not in ("config_file", "args_file")}
    meta = {"meta_file": str(ROOT / "configs" / "metadata.json"), "logging_file": None, "workflow_type": "train"}
    workflow = ConfigWorkflow(config_file=line.config_files, run_id=line.positionals[0], **meta, **options)
    content = workflow.parser.get_parsed_content
    content("inferer" if "inference" in line.positionals else "precision")
    restorer = content("network_def")
    if "training" in line.positionals:
        require_ranges(**content("ranged"))
        assert options.get("patch_size", 0) % restorer.multiple == 0


@pytest.mark.parametrize("folder", RUNNING)
def test_every_value_passes_the_checks_of_its_config(folder, tmp_path, on_a_v100):
    check_values(run_line(folder, tmp_path))


@pytest.mark.parametrize(
    ("key", "value"), [("mixed_precision", "fp8"), ("batch_size", "many"), ("preset", "big"), ("checkpoint_every", -1)]
)
def test_a_wrong_value_is_found(key, value, tmp_path, on_a_v100):
    line = run_line("overlays/train-1gpu", tmp_path)
    with pytest.raises((BundleError, RuntimeError)) as caught:  # MONAI's, around ours
        check_values(CommandLine(line.positionals, line.options | {key: value}))
    assert key in str(find_bundle_error(caught.value))


def test_a_misspelt_option_is_found(tmp_path):
    line = run_line("train", tmp_path)
    with pytest.raises(BundleError, match="batch_size"):
        check_options(CommandLine((), line.options | {"batchsize": 2}).options, load_config(line.config_files))


def test_inference_takes_what_training_leaves_and_does_not_fail_for_one_bad_series(tmp_path):
    training = run_line("train", tmp_path).options
    for folder in ("inference", "overlays/inference", "nightly"):
        inference = run_line(folder, tmp_path).options
        assert inference["weights_file"] == f"{training['output_dir']}/model.pt"
        assert str(inference["tolerate_bad_series"]).lower() == "true"
        assert inference["preset"] == training["preset"]


def test_the_smoke_test_writes_apart_from_the_real_training(tmp_path):
    smoke = run_line("overlays/cpu-smoke", tmp_path).options
    assert smoke["output_dir"] != run_line("train", tmp_path).options["output_dir"]
    assert smoke["device"] == "cpu"


def test_data_of_the_hub_fit_the_volume(tmp_path):
    """Archives at a time, a prepared case of 300 slices for each archive, and checkpoints (docs/kubernetes.md)."""
    options = run_line("overlays/train-hub", tmp_path).options
    config = load_config([ROOT / "configs" / "train.yaml"])
    case = 300 * 512**2 * (2 + 4 * options.get("noise_realisations", config["noise_realisations"]))
    taken = options["archive_gigabytes"] * 1e9 + options["max_samples"] * case + 2e9
    (claim,) = built("storage")
    assert taken < size_in_bytes(claim["spec"]["resources"]["requests"]["storage"])


def test_gpus_are_asked_for_by_their_overlays_only(tmp_path):
    for folder in RUNNING:
        (container,) = containers(folder)
        asked = container["resources"]["limits"].get("nvidia.com/gpu", 0)
        # Without a GPU the container then ends at once rather than spending days on a CPU.
        options = run_line(folder, tmp_path).options
        assert (asked > 0) == (options.get("device") == "cuda" or options.get("backend") == "nccl"), folder
        # Each of several processes has a device of its own.
        assert (folder in LAUNCHED) == ("launch" in container["args"]) == ("backend" in options)


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


def test_what_is_commented_out_builds(tmp_path):
    """The image's place and the node's GPU, as a user would switch them on."""
    shutil.copytree(K8S, tmp_path / "k8s")
    folder = tmp_path / "k8s" / "overlays" / "train-1gpu"
    head, mark, block = (folder / "kustomization.yaml").read_text().partition("# Where your image is:\n")
    lines = [line.removeprefix("# ") for line in block.splitlines() if not line.startswith("# Which GPU")]
    (folder / "kustomization.yaml").write_text("\n".join([head, mark, *lines]))
    finished = subprocess.run([tool("kubectl"), "kustomize", str(folder)], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    (pod,) = [pod for document in yaml.safe_load_all(finished.stdout) for pod in pods_of(document)]
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "Tesla-V100-SXM2-16GB"}
    assert pod["containers"][0]["image"].startswith("REGISTRY/ct-enhance:")


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


def test_text_is_the_same_in_every_build():
    assert re.search(r"ct-enhance-overrides-\w{10}", built_text("train"))
