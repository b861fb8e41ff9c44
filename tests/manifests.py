"""The manifests as kustomize builds them, and the jobs, pods and containers in them."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

Document = dict[str, Any]

ROOT = Path(__file__).resolve().parents[1]
K8S = ROOT / "k8s"
CONTAINER = "ct-enhance"
OVERRIDES = "/workspace/overrides"
# What can be applied; components only change others.
FOLDERS = sorted(
    path.parent.relative_to(K8S).as_posix()
    for path in K8S.rglob("kustomization.yaml")
    if "components" not in path.relative_to(K8S).parts
)
WITHOUT_WORKLOAD = {"base", "storage", "overlays/storage-shared"}
WORKLOADS = [folder for folder in FOLDERS if folder not in WITHOUT_WORKLOAD]
_SIZES = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def load(path: Path) -> list[Document]:
    return list(yaml.safe_load_all(path.read_text()))


def tool(name: str) -> str:
    """Path of a tool beside this Python or on PATH, or a skip that says so."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    return found or pytest.skip(f"{name} is not installed")


def kustomized(folder: Path) -> str:
    """What `kubectl apply -k` would send, or a skip where there is no kubectl."""
    finished = subprocess.run([tool("kubectl"), "kustomize", str(folder)], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@cache
def built_text(folder: str) -> str:
    """`kustomized` of a folder below k8s/."""
    return kustomized(K8S / folder)


def built(folder: str) -> list[Document]:
    return list(yaml.safe_load_all(built_text(folder)))


def jobs_of(document: Document) -> Iterator[Document]:
    """The specs of the Jobs that a document makes."""
    kind, spec = document["kind"], document.get("spec", {})
    if kind == "Job":
        yield spec
    elif kind == "CronJob":
        yield spec["jobTemplate"]["spec"]
    elif kind == "JobSet":
        yield from (replicated["template"]["spec"] for replicated in spec["replicatedJobs"])
    elif kind in ("TrainingRuntime", "ClusterTrainingRuntime"):
        yield from (replicated["template"]["spec"] for replicated in spec["template"]["spec"]["replicatedJobs"])


def pods_of(document: Document) -> Iterator[Document]:
    """The specs of the pods that a document makes."""
    if document["kind"] == "Pod":
        yield document["spec"]
    elif document["kind"] in ("StatefulSet", "Deployment"):
        yield document["spec"]["template"]["spec"]
    yield from (job["template"]["spec"] for job in jobs_of(document))


def ours(pod: Document) -> list[Document]:
    """The containers of a pod that run the image of this repository."""
    return [container for container in pod["containers"] if container["image"].startswith(f"{CONTAINER}:")]


def config_map(documents: list[Document]) -> dict[str, str]:
    """Files of the overrides, by name."""
    maps = [one for one in documents if one["kind"] == "ConfigMap" and "overrides" in one["metadata"]["name"]]
    return {name: text for one in maps for name, text in one["data"].items()}


def environment(container: Document) -> dict[str, str]:
    """Variables with a plain value."""
    return {one["name"]: one["value"] for one in container.get("env", ()) if "value" in one}


def expanded(arguments: list[str], variables: dict[str, str]) -> list[str]:
    """Arguments with $(NAME) replaced as the kubelet does: unknown names stay."""
    return [re.sub(r"\$\((\w+)\)", lambda m: variables.get(m[1], m[0]), argument) for argument in arguments]


def size_in_bytes(quantity: str) -> int:
    """Bytes of a quantity such as 20Gi."""
    number, unit = re.fullmatch(r"(\d+)(Ki|Mi|Gi)", quantity).groups()
    return int(number) * _SIZES[unit]
