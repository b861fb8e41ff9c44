"""The container and the manifests: what a cluster would refuse, and what no schema sees."""

import copy
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml

import bundle
from bundle.errors import BundleError, ExitCode
from bundle.overrides import check_options, load_config, load_config_file, parse_command_line

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
BASE = K8S / "base"
DOCKERFILE = (K8S / "Dockerfile").read_text()
FINAL_STAGE = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
OVERRIDES = "/workspace/overrides/"
FOLDERS = sorted(path.parent.relative_to(K8S).as_posix() for path in K8S.rglob("kustomization.yaml"))
WORKLOADS = ["train/job.yaml", "inference/job.yaml", "interactive/pod.yaml"]
DEFAULT_GRACE_SECONDS = 30


def load(path: Path):
    return list(yaml.safe_load_all(path.read_text()))


def tool(name):
    """Path of a tool beside this Python or on PATH, or a skip that says so."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    return found or pytest.skip(f"{name} is not installed")


@cache
def built_text(folder):
    finished = subprocess.run([tool("kubectl"), "kustomize", str(K8S / folder)], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def built(folder):
    return list(yaml.safe_load_all(built_text(folder)))


def pod_of(document):
    """The pod's spec of a workload; None for anything else."""
    if document["kind"] == "Pod":
        return document["spec"]
    return document["spec"]["template"]["spec"] if document["kind"] == "Job" else None


def base_documents():
    kustomization = load(BASE / "kustomization.yaml")[0]
    shared = [document for name in kustomization["resources"] for document in load(BASE / name)]
    return shared + [{"kind": "ConfigMap", "metadata": item} for item in kustomization["configMapGenerator"]]


# ---- rules: each yields what is wrong with a workload -------------------------------------------------------


def job_problems(job):
    spec, pod = job["spec"], pod_of(job)
    if pod["restartPolicy"] != "Never":
        yield "podFailurePolicy needs restartPolicy Never"
    if spec.get("podReplacementPolicy") != "Failed":
        yield "podReplacementPolicy: two pods could write at once"
    for key in ("backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"):
        if not isinstance(spec.get(key), int):
            yield f"{key} is missing"
    rules = spec["podFailurePolicy"]["rules"]
    conditions = [(rule["action"], condition) for rule in rules for condition in rule.get("onPodConditions", ())]
    if conditions != [("Ignore", {"type": "DisruptionTarget", "status": "True"})]:
        yield 'a disruption must be ignored, with status: "True" (required up to 1.34; a string)'
    names = {container["name"] for container in pod["containers"]}
    codes = {}
    for rule in rules:
        if "onExitCodes" in rule:
            codes[rule["action"]] = (rule["onExitCodes"]["operator"], rule["onExitCodes"]["values"])
            if rule["onExitCodes"].get("containerName") not in names:
                yield "podFailurePolicy names an unknown container"
    if codes != {"Ignore": ("In", [ExitCode.INTERRUPTED]), "FailJob": ("In", [ExitCode.USER])}:
        yield "exit codes must be treated as bundle.errors means them"
    if pod.get("terminationGracePeriodSeconds", DEFAULT_GRACE_SECONDS) <= DEFAULT_GRACE_SECONDS:
        yield "terminationGracePeriodSeconds is too short for a checkpoint"
    if not any(mount["mountPath"] == "/dev/shm" for mount in pod["containers"][0]["volumeMounts"]):
        yield "/dev/shm has 64 MB only"


def security_problems(pod):
    user = int(re.search(r"^USER (\d+):", DOCKERFILE, re.M)[1])
    context = pod["securityContext"]
    if context.get("runAsNonRoot") is not True or context.get("runAsUser") != user or context.get("fsGroup") != user:
        yield "the pod must run as the image's user"
    if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "seccompProfile"
    if pod.get("automountServiceAccountToken") is not False or "serviceAccountName" not in pod:
        yield "a token would be mounted"
    for container in pod["containers"]:
        inner = container["securityContext"]
        if inner.get("allowPrivilegeEscalation") is not False or inner.get("capabilities") != {"drop": ["ALL"]}:
            yield "not restricted"
        if inner.get("readOnlyRootFilesystem") is not True:
            yield "the root must be read-only"


def volume_problems(pod):
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    for container in pod["containers"]:
        mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
        if mounts.keys() != volumes.keys():
            yield f"volumes and mounts differ: {sorted(mounts.keys() ^ volumes.keys())}"
        paths = {mount["mountPath"] for mount in mounts.values()}
        if "/tmp" not in paths:
            yield "/tmp must be writable"
        made = re.findall(r"mkdir -p ([^&\\\n]*)", FINAL_STAGE)[0].split()
        if missing := paths - {"/tmp", "/dev/shm", *made}:
            yield f"the image has no mount point {sorted(missing)}"
        for argument in container.get("args", ()):
            if argument.startswith("/") and not any(argument.startswith(f"{path}/") for path in paths):
                yield f"{argument} is on no volume"


def container_problems(pod):
    for container in pod["containers"]:
        if container["image"] != f"ct-enhance:{bundle.__version__}":
            yield "image: not this version"
        if not {"cpu", "memory"} <= container["resources"]["limits"].keys() & container["resources"]["requests"].keys():
            yield "resources are not bounded"
        for variable in container.get("env", ()):
            if not isinstance(variable["name"], str) or not isinstance(variable.get("value", ""), str):
                yield f"env {variable['name']} must be quoted"
        if not all(isinstance(argument, str) for argument in [*container["command"], *container.get("args", ())]):
            yield "arguments must be quoted"


def reference_problems(pod, documents):
    names = {(document["kind"], document["metadata"]["name"]) for document in documents}
    wanted = {("ServiceAccount", pod.get("serviceAccountName"))}
    for volume in pod["volumes"]:
        if "configMap" in volume:
            wanted.add(("ConfigMap", volume["configMap"]["name"]))
        if "persistentVolumeClaim" in volume:
            wanted.add(("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]))
    yield from (f"{kind} {name} does not exist" for kind, name in wanted - names)


def problems(workload, documents):
    pod = pod_of(workload)
    found = [*job_problems(workload)] if workload["kind"] == "Job" else []
    found += [*security_problems(pod), *volume_problems(pod), *container_problems(pod)]
    return [*found, *reference_problems(pod, documents)]


@pytest.mark.parametrize("name", WORKLOADS)
def test_workloads_keep_the_rules(name):
    (workload,) = load(K8S / name)
    assert problems(workload, base_documents()) == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_built_workloads_keep_the_rules(folder):
    documents = built(folder)
    workloads = [document for document in documents if pod_of(document)]
    assert len(workloads) == (folder not in ("base", "storage"))
    assert [problems(workload, documents) for workload in workloads] == [[]] * len(workloads)


SPOILED = {
    "status parsed as a boolean": ("spec podFailurePolicy rules 0 onPodConditions 0 status", True),
    "no status": ("spec podFailurePolicy rules 0 onPodConditions 0", {"type": "DisruptionTarget"}),
    "restart in place": ("spec template spec restartPolicy", "OnFailure"),
    "two pods at once": ("spec podReplacementPolicy", "TerminatingOrFailed"),
    "unknown container": ("spec podFailurePolicy rules 1 onExitCodes containerName", "main"),
    "defects not retried": ("spec podFailurePolicy rules 2 onExitCodes values", [2, 70]),
    "short grace": ("spec template spec terminationGracePeriodSeconds", 30),
    "root": ("spec template spec securityContext runAsUser", 0),
    "token": ("spec template spec automountServiceAccountToken", True),
    "writable root": ("spec template spec containers 0 securityContext readOnlyRootFilesystem", False),
    "privileges": ("spec template spec containers 0 securityContext allowPrivilegeEscalation", True),
    "misspelt volume": ("spec template spec volumes 0 name", "store"),
    "no mount point": ("spec template spec containers 0 volumeMounts 0 mountPath", "/data"),
    "missing claim": ("spec template spec volumes 0 persistentVolumeClaim claimName", "other"),
    "env parsed as a number": ("spec template spec containers 0 env 2 value", 1),
    "other image": ("spec template spec containers 0 image", "ct-enhance:latest"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_rules_find_what_is_spoiled(name):
    trail, value = SPOILED[name]
    (job,) = load(K8S / "train" / "job.yaml")
    spoiled = copy.deepcopy(job)
    *parents, last = [int(part) if part.isdigit() else part for part in trail.split()]
    node = spoiled
    for part in parents:
        node = node[part]
    assert node[last] != value
    node[last] = value
    assert problems(spoiled, base_documents())


# ---- commands -----------------------------------------------------------------------------------------------


def commands():
    """Arguments of every container that runs the bundle, those of patches included, by file."""
    found = {}
    for path in sorted(K8S.rglob("*.yaml")):
        for document in load(path):
            pod = pod_of(document) if document.get("kind") in ("Job", "Pod") else None
            for container in pod["containers"] if pod else ():
                if "args" in container:
                    assert container.get("command", ["python", "-m", "bundle"]) == ["python", "-m", "bundle"]
                    found[path.relative_to(K8S).as_posix()] = container["args"]
    return found


def parsed(arguments, overrides):
    """The command line as in the container, with this checkout and a folder of overrides in their places."""
    assert arguments[0] == "run"
    here = [re.sub(r"^configs/", f"{ROOT}/configs/", argument) for argument in arguments[1:]]
    return parse_command_line([re.sub(f"^{OVERRIDES}", f"{overrides}/", argument) for argument in here])


@pytest.mark.parametrize("overrides", sorted(K8S.rglob("overrides")), ids=lambda path: path.parent.name)
@pytest.mark.parametrize("name", commands())
def test_every_option_exists_in_the_config(name, overrides):
    arguments = commands()[name]
    workflow = Path(arguments[arguments.index("--args_file") + 1]).name
    if not (overrides / workflow).is_file():  # an overlay keeps the base's
        overrides = BASE / "overrides"
    line = parsed(arguments, overrides)
    config = load_config(line.config_files)
    assert len(line.positionals) == 1 and line.positionals[0] in config
    check_options(line.options, config)
    assert {"dataset_dir", "output_dir"} <= line.options.keys()
    assert Path(arguments[3]).name == workflow


def test_a_misspelt_option_is_found():
    arguments = [*commands()["train/job.yaml"], "--batchsize", "2"]
    line = parsed(arguments, BASE / "overrides")
    with pytest.raises(BundleError, match="batch_size"):
        check_options(line.options, load_config(line.config_files))


def test_inference_takes_what_training_leaves_and_does_not_fail_for_one_bad_series():
    training = parsed(commands()["train/job.yaml"], BASE / "overrides").options
    inference = parsed(commands()["inference/job.yaml"], BASE / "overrides").options
    assert inference["weights_file"] == f"{training['output_dir']}/model.pt"
    assert str(inference["tolerate_bad_series"]).lower() == "true"
    assert inference["preset"] == training["preset"]


def test_overlays_write_apart_from_the_real_training_or_go_on_with_it():
    smoke = parsed(commands()["overlays/cpu-smoke/small-job.yaml"], K8S / "overlays/cpu-smoke/overrides").options
    assert smoke["output_dir"] != parsed(commands()["train/job.yaml"], BASE / "overrides").options["output_dir"]
    assert smoke["device"] == "cpu"


# ---- kustomize, schemas -------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_a_kustomization_names_exists(folder):
    (kustomization,) = load(K8S / folder / "kustomization.yaml")
    files = [patch["path"] for patch in kustomization.get("patches", ())]
    files += [name for item in kustomization.get("configMapGenerator", ()) for name in item["files"]]
    for name in kustomization["resources"]:
        files.append(name if name.endswith(".yaml") else f"{name}/kustomization.yaml")
    assert [name for name in files if not (K8S / folder / name).is_file()] == []


def test_no_manifest_is_left_over():
    named = set()
    for folder in FOLDERS:
        (kustomization,) = load(K8S / folder / "kustomization.yaml")
        named |= {K8S / folder / name for name in kustomization["resources"]}
        named |= {K8S / folder / patch["path"] for patch in kustomization.get("patches", ())}
        named |= {K8S / folder / name for item in kustomization.get("configMapGenerator", ()) for name in item["files"]}
    others = {path for path in K8S.rglob("*.yaml") if path.name != "kustomization.yaml"}
    assert others - named == set()


@pytest.mark.parametrize("path", sorted(K8S.rglob("*.yaml")), ids=lambda path: path.relative_to(K8S).as_posix())
def test_every_file_is_yaml_without_duplicate_keys(path):
    assert load_config_file(path)


def test_a_gpu_is_asked_for_only_by_its_overlay():
    asking = [folder for folder in FOLDERS if "nvidia.com/gpu: 1" in built_text(folder)]
    assert asking == ["overlays/train-1gpu"]


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("version", ["1.34", "1.37"])
def test_schemas(folder, version):
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed").validate
    for document in built(folder):
        validate(document, version, strict=True)


def test_network_policy_denies_our_pods_only():
    (policy,) = load(BASE / "network-policy.yaml")
    spec = policy["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"] and spec["ingress"] == spec["egress"] == []
    ours = spec["podSelector"]["matchLabels"]
    assert ours
    for name in WORKLOADS:
        (workload,) = load(K8S / name)
        labelled = workload if workload["kind"] == "Pod" else workload["spec"]["template"]
        assert ours.items() <= labelled["metadata"]["labels"].items()


# ---- image --------------------------------------------------------------------------------------------------


def test_image_is_pinned_numeric_and_gets_signals():
    base = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE, re.M)[1]
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", base)
    assert re.findall(r"^FROM (\S+)", DOCKERFILE, re.M) == ["${PYTHON_IMAGE}"] * 2
    assert re.search(r"^USER \d+:\d+$", FINAL_STAGE, re.M)
    assert re.search(r'^ENTRYPOINT \["python", "-m", "bundle"\]$', FINAL_STAGE, re.M)


def test_final_stage_builds_nothing():
    assert re.search(r"\b(apt-get|pip install|gcc|g\+\+|build-essential)\b", FINAL_STAGE) is None


def test_caches_are_on_the_writable_folder():
    variables = dict(re.findall(r"(\w+)=(\S+?)(?: \\)?$", FINAL_STAGE[FINAL_STAGE.index("\nENV ") :], re.M))
    folders = {name: value for name, value in variables.items() if re.search("HOME|DIR|CACHE|CONFIG", name)}
    assert {"HOME", "TMPDIR", "XDG_CACHE_HOME", "MPLCONFIGDIR", "NUMBA_CACHE_DIR"} <= folders.keys()
    assert [name for name, value in folders.items() if not re.match("/tmp(/|$)", value)] == []


def test_builder_gets_what_the_installation_needs_and_nothing_else():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    sent = {line[1:] for line in rules if line.startswith("!")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    requirements = project["tool"]["setuptools"]["dynamic"]["dependencies"]["file"]
    needed = {"pyproject.toml", "constraints.txt", project["project"]["readme"], *requirements}
    assert sent == needed | {*project["project"]["license-files"], "bundle", "configs", "models"}
    assert [name for name in sent - {"models"} if not (ROOT / name).exists()] == []


def test_hadolint():
    finished = subprocess.run([tool("hadolint"), str(K8S / "Dockerfile")], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout


# ---- page ---------------------------------------------------------------------------------------------------


def test_page_names_what_exists_and_every_exit_code():
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    named = set(re.findall(r"\bk8s/[\w./-]*\w", page))
    assert named and [name for name in named if not (ROOT / name).exists()] == []
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.M)} == {int(code) for code in ExitCode}
