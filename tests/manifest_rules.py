"""Rules for manifests that no schema sees; each function yields what is wrong, in words.

They stand in for an API server (enums, what goes only together) and for the people who would find the rest at night.
"""

import re
from collections.abc import Iterator
from typing import Any

from manifests import CONTAINER, K8S, Document, environment, jobs_of, ours, pods_of

import bundle
from bundle.errors import ExitCode

DOCKERFILE = (K8S / "Dockerfile").read_text()
FINAL_STAGE = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
USER = int(re.search(r"^USER (\d+):", DOCKERFILE, re.M)[1])  # type: ignore[index]
MOUNT_POINTS = set(re.findall(r"mkdir -p ([^&\\\n]*)", FINAL_STAGE)[0].split())
DEFAULT_GRACE_SECONDS = 30
# A checkpoint and a validation on their way when SIGTERM comes; assumed, and generously so for `small`.
LONGEST_SAVE_SECONDS = 60

ENUMS = {
    "restartPolicy": {"Never", "OnFailure", "Always"},
    "podReplacementPolicy": {"Failed", "TerminatingOrFailed"},
    "completionMode": {"Indexed", "NonIndexed"},
    "concurrencyPolicy": {"Allow", "Forbid", "Replace"},
    "imagePullPolicy": {"IfNotPresent", "Always", "Never"},
    "terminationMessagePolicy": {"File", "FallbackToLogsOnError"},
    "fsGroupChangePolicy": {"OnRootMismatch", "Always"},
    "accessModes": {"ReadWriteOnce", "ReadWriteMany", "ReadOnlyMany", "ReadWriteOncePod"},
    "policyTypes": {"Ingress", "Egress"},
    "protocol": {"TCP", "UDP", "SCTP"},
    "effect": {"NoSchedule", "NoExecute", "PreferNoSchedule"},
    "medium": {"", "Memory"},
    "action": {"Ignore", "FailJob", "Count", "FailIndex", "FailJobSet", "RestartJobSet"}
    | {"RestartJobSetAndIgnoreMaxRestarts"},
    "operator": {"In", "NotIn", "Exists", "DoesNotExist", "Equal"},
    "podManagementPolicy": {"OrderedReady", "Parallel"},
}


def enum_problems(node: Any, key: str = "") -> Iterator[str]:
    """Values that only a real API server would refuse."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from enum_problems(value, name)
    elif isinstance(node, list):
        for value in node:
            yield from enum_problems(value, key)
    elif key in ENUMS and node not in ENUMS[key]:
        yield f"{key}: {node} is none of {sorted(ENUMS[key])}"


def job_problems(job: Document, *, gang: bool = False) -> Iterator[str]:
    """Retries, replacement, deadlines; in a `gang` (JobSet) the set decides what a failure means."""
    pod = job["template"]["spec"]
    if pod["restartPolicy"] != "Never":
        yield "podFailurePolicy needs restartPolicy Never"
    if job.get("podReplacementPolicy") != "Failed":
        yield "podReplacementPolicy: two pods could write at once"
    for key in ("activeDeadlineSeconds",) if gang else ("activeDeadlineSeconds", "ttlSecondsAfterFinished"):
        if not isinstance(job.get(key), int):
            yield f"{key} is missing"
    yield from _index_problems(job)
    yield from _policy_problems(job, gang=gang)
    grace = pod.get("terminationGracePeriodSeconds", DEFAULT_GRACE_SECONDS)
    if grace <= LONGEST_SAVE_SECONDS:
        yield "terminationGracePeriodSeconds is too short for a checkpoint"
    for container in ours(pod):
        shutdown = environment(container).get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT")
        if "launch" in container.get("args", ()) and shutdown is None:
            yield "TORCH_ELASTIC_SHUTDOWN_TIMEOUT: torchrun kills after 30 seconds"
        if shutdown is not None and not LONGEST_SAVE_SECONDS < int(shutdown) < grace:
            yield "grace period > shutdown timeout > longest save does not hold"
        if not any(mount["mountPath"] == "/dev/shm" for mount in container["volumeMounts"]):
            yield "/dev/shm has 64 MB only"


def _index_problems(job: Document) -> Iterator[str]:
    indexed = job.get("completionMode") == "Indexed"
    completions, parallelism = job.get("completions", 1), job.get("parallelism", 1)
    if "backoffLimitPerIndex" in job and not indexed:
        yield "backoffLimitPerIndex needs completionMode Indexed"
    if "maxFailedIndexes" in job and "backoffLimitPerIndex" not in job:
        yield "maxFailedIndexes needs backoffLimitPerIndex"
    if not isinstance(job.get("backoffLimitPerIndex" if "backoffLimitPerIndex" in job else "backoffLimit"), int):
        yield "backoffLimit is missing"
    if parallelism > completions or (completions > 1 and not indexed):
        yield "parallelism or completions make no sense"
    for container in ours(job["template"]["spec"]):
        nodes = environment(container).get("NNODES")
        told = "--nnodes" in container.get("args", ()) and "$(PET_NNODES)" not in container["args"]  # Kubeflow's own
        if told != (nodes is not None) or nodes not in (None, str(completions)):
            yield "NNODES and completions differ: the nodes would wait for each other for ever"
        shards = environment(container).get("SHARDS")
        if ("--shard" in container.get("args", ())) != (shards is not None):
            yield "--shard and SHARDS go together"
        if shards is not None and int(shards) != completions:
            yield f"SHARDS is {shards}, but completions {completions}: series would be left out or done twice"


def _policy_problems(job: Document, *, gang: bool) -> Iterator[str]:
    rules = job.get("podFailurePolicy", {}).get("rules", ())
    conditions = [(rule["action"], condition) for rule in rules for condition in rule.get("onPodConditions", ())]
    if conditions != [("FailJob" if gang else "Ignore", {"type": "DisruptionTarget", "status": "True"})]:
        yield 'a disruption must not count, with status: "True" (required up to 1.34; a string)'
    names = {container["name"] for container in job["template"]["spec"]["containers"]}
    codes = {}
    for rule in rules:
        if "onExitCodes" in rule:
            codes[rule["action"]] = (rule["onExitCodes"]["operator"], rule["onExitCodes"]["values"])
            if rule["onExitCodes"].get("containerName") not in names:
                yield "podFailurePolicy names an unknown container"
    # An evaluation has written its table when it ends with 3; restoring tolerates bad series.
    evaluates = any("evaluation" in container.get("args", ()) for container in ours(job["template"]["spec"]))
    useless = [ExitCode.USER, ExitCode.PARTIAL] if evaluates else [ExitCode.USER]
    alone = {"Ignore": ("In", [ExitCode.INTERRUPTED]), "FailJob": ("In", useless)}
    if codes != ({"FailJob": ("In", [ExitCode.USER, ExitCode.INTERRUPTED])} if gang else alone):
        yield "exit codes must be treated as bundle.errors means them"


def gang_problems(spec: Document) -> Iterator[str]:
    """A JobSet: what the user must change ends it, an interruption starts all again uncounted."""
    first, second = spec["failurePolicy"]["rules"]
    (pattern,) = first["onJobFailureMessagePatterns"]
    # As the Job controller writes it.
    said = "Container ct-enhance for pod default/x failed with exit code {} matching FailJob rule at index 1"
    if first["action"] != "FailJobSet" or [bool(re.search(pattern, said.format(code))) for code in (2, 75, 20)] != [
        True, False, False,
    ]:  # fmt: skip
        yield "exit code 2 must fail the set"
    if second["action"] != "RestartJobSetAndIgnoreMaxRestarts" or "onJobFailureMessagePatterns" in second:
        yield "an interruption must not count"
    if {*first["onJobFailureReasons"], *second["onJobFailureReasons"]} != {"PodFailurePolicy"}:
        yield "other reasons must count"
    if any(job["template"]["spec"]["backoffLimit"] != 0 for job in spec["replicatedJobs"]):
        yield "a pod alone must not start again"


def cron_job_problems(spec: Document) -> Iterator[str]:
    """Two rounds at once would write into one folder."""
    if spec.get("concurrencyPolicy") != "Forbid":
        yield "concurrencyPolicy must be Forbid"
    if not re.fullmatch(r"[\d*/,-]+( [\d*/,-]+){4}", str(spec.get("schedule"))):
        yield "schedule has five fields"
    if not isinstance(spec.get("startingDeadlineSeconds"), int):
        yield "startingDeadlineSeconds: after 100 missed rounds it would never start again"


def security_problems(pod: Document) -> Iterator[str]:
    """The restricted Pod Security Standard, a read-only root, and no token."""
    context = pod["securityContext"]
    if context.get("runAsNonRoot") is not True or context.get("runAsUser", 0) == 0 or context.get("fsGroup", 0) == 0:
        yield "the pod must not run as root"
    if ours(pod) and {context.get(key) for key in ("runAsUser", "runAsGroup", "fsGroup")} != {USER}:
        yield "the pod must run as the image's user"
    if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "seccompProfile"
    if pod.get("automountServiceAccountToken") is not False or "serviceAccountName" not in pod:
        yield "a token would be mounted"
    if pod.get("hostNetwork") or pod.get("hostPID") or pod.get("hostIPC"):
        yield "the host's namespaces"
    if any(set(volume) & {"hostPath", "nfs", "iscsi"} for volume in pod["volumes"]):
        yield "a volume that the restricted standard forbids"
    for container in [*pod["containers"], *pod.get("initContainers", ())]:
        inner = container["securityContext"]
        if inner.get("allowPrivilegeEscalation") is not False or inner.get("capabilities") != {"drop": ["ALL"]}:
            yield "not restricted"
        if inner.get("readOnlyRootFilesystem") is not True:
            yield "the root must be read-only"


def volume_problems(pod: Document, templates: set[str]) -> Iterator[str]:
    """Names, mount points that exist in the image, and arguments that lie on a volume."""
    volumes = {volume["name"] for volume in pod["volumes"]} | templates
    for container in pod["containers"]:
        mounts = {mount["name"] for mount in container["volumeMounts"]}
        if mounts != volumes:
            yield f"volumes and mounts differ: {sorted(mounts ^ volumes)}"
    for container in ours(pod):
        paths = {mount["mountPath"] for mount in container["volumeMounts"]}
        if "/tmp" not in paths:
            yield "/tmp must be writable"
        if missing := paths - {"/tmp", "/dev/shm", *MOUNT_POINTS}:
            yield f"the image has no mount point {sorted(missing)}"
        for argument in container.get("args", ()):
            if argument.startswith("/") and not any(argument.startswith(f"{path}/") for path in paths):
                yield f"{argument} is on no volume"


def container_problems(pod: Document) -> Iterator[str]:
    """Image, resources, and what YAML would read as something else than text."""
    for container in pod["containers"]:
        if container["name"] in (CONTAINER, "node") and container["image"] != f"ct-enhance:{bundle.__version__}":
            yield "image: not this version"
        if not re.fullmatch(r"[\w./-]+:\d[\w.]*", container["image"]):
            yield "image: no exact tag"
        limits, requests = container["resources"]["limits"], container["resources"]["requests"]
        if not {"cpu", "memory"} <= limits.keys() & requests.keys():
            yield "resources are not bounded"
        if any(limits.get(key) != requests.get(key) for key in {*limits, *requests} if "/" in key):
            yield "a GPU's request and limit differ"
        arguments = container.get("args", [])
        if "--nproc_per_node" in arguments:
            processes = arguments[arguments.index("--nproc_per_node") + 1]
            if processes not in (str(limits.get("nvidia.com/gpu")), "$(PET_NPROC_PER_NODE)"):
                yield "one process for each GPU"
        for variable in container.get("env", ()):
            if not isinstance(variable["name"], str) or not isinstance(variable.get("value", ""), str):
                yield f"env {variable['name']} must be quoted"
        texts = [*container.get("command", ()), *container.get("args", ())]
        if not all(isinstance(text, str) for text in texts):
            yield "arguments must be quoted"


def reference_problems(pod: Document, documents: list[Document]) -> Iterator[str]:
    """What a pod names and nobody makes. Secrets are the user's."""
    names = {(document["kind"], document["metadata"]["name"]) for document in documents}
    wanted = {("ServiceAccount", pod.get("serviceAccountName"))}
    for volume in pod["volumes"]:
        if "configMap" in volume:
            wanted.add(("ConfigMap", volume["configMap"]["name"]))
        if "persistentVolumeClaim" in volume:
            wanted.add(("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]))
    yield from (f"{kind} {name} does not exist" for kind, name in wanted - names)


def problems(document: Document, documents: list[Document]) -> list[str]:
    """All that is wrong with one document beside the others that are applied with it."""
    found = [*enum_problems(document)]
    if document["kind"] == "CronJob":
        found += cron_job_problems(document["spec"])
    gang = document["kind"] in ("JobSet", "TrainingRuntime")
    if gang:
        found += gang_problems(
            document["spec"] if document["kind"] == "JobSet" else document["spec"]["template"]["spec"]
        )
    for job in jobs_of(document):
        found += job_problems(job, gang=gang)
    templates = {one["metadata"]["name"] for one in document.get("spec", {}).get("volumeClaimTemplates", ())}
    for pod in pods_of(document):
        found += [*security_problems(pod), *volume_problems(pod, templates), *container_problems(pod)]
        found += reference_problems(pod, documents)
    return found
