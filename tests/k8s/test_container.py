"""The image, built for real and run as the manifests say: `make test-container`. Not part of the other runs.

Where the base image of the Dockerfile cannot be pulled, a Debian of the same release is made by debootstrap and given
its name. TORCH_INDEX_URL is handed to the build; local files that pip is configured with are mounted for it.
"""

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pod_cases as cases
import pytest
from manifest_rules import DOCKERFILE
from manifests import K8S, ROOT
from phantom_series import write_phantom_series
from pod_simulator import Podman, volume

import bundle

pytestmark = pytest.mark.container
IMAGE = f"localhost/ct-enhance:{bundle.__version__}"
BASE = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE, re.M)[1]
# Root in a container of its own kind may not raise limits, and cannot use crun with two kinds of cgroups.
CONFIGURATION = """\
[containers]
default_ulimits=["nofile=1024:1024","nproc=4096:4096"]
[engine]
runtime="runc"
"""


def say(text):
    print(f"container: {text}", flush=True)


def call(command, environment, **options):
    done = subprocess.run(command, env=environment, capture_output=True, text=True, **options)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def tools():
    for name in ("podman", "buildah", "runc"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed (Debian: podman buildah runc debootstrap)")
    folder = Path(os.environ.get("CT_ENHANCE_CONTAINERS", ROOT / "build" / "containers"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "containers.conf").write_text(CONFIGURATION)
    environment = {**os.environ, "CONTAINERS_CONF": str(folder / "containers.conf")}
    store = ["--root", str(folder / "store"), "--runroot", str(folder / "run")]
    return {"podman": ["podman", *store, "--tmpdir", str(folder / "tmp")], "buildah": ["buildah", *store]}, environment


def make_base(podman, environment, folder):
    """A Debian of the base image's release with its Python, under the base image's name."""
    if shutil.which("debootstrap") is None or os.getuid() != 0:
        pytest.skip(f"{BASE} cannot be pulled, and debootstrap is not there or not allowed")
    sources = "".join(path.read_text() for path in Path("/etc/apt/sources.list.d").glob("debian*"))
    mirror = re.search(r"^URIs: (\S+)", sources, re.M)
    root = folder / "base"
    packages = "python3,python3-venv,python3-pip,ca-certificates"
    command = ["debootstrap", "--variant=minbase", f"--include={packages}", BASE.rpartition("-")[2], str(root)]
    call([*command, *([mirror[1]] if mirror else [])], environment)
    for name in ("python", "python3"):
        (root / "usr/local/bin" / name).symlink_to("../../bin/python3")
    with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as tar:
        path = "ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
        call([*podman, "import", "--change", path, "-", f"docker.io/library/{BASE}"], environment, stdin=tar.stdout)
    shutil.rmtree(root)


def mounts_for_pip():
    """Local files and folders of pip's configuration, seen by the build only; nothing of them stays in the image."""
    told = subprocess.run(["pip", "config", "debug"], capture_output=True, text=True).stdout
    files = set(re.findall(r"^\s+(/\S+), exists: True", told, re.M))
    listed = subprocess.run(["pip", "config", "list"], capture_output=True, text=True).stdout
    for value in re.findall(r"='([^']*)'", listed):
        for word in value.split():
            path = Path(word.removeprefix("file://"))
            if path.is_absolute() and path.exists():
                files.add(str(path.parent if path.name == "simple" else path))
    return [part for path in sorted(files) for part in ("--volume", f"{path}:{path}:ro")]


@pytest.fixture(scope="module")
def image(tools):
    programs, environment = tools
    folder = Path(environment["CONTAINERS_CONF"]).parent
    started = time.monotonic()
    have = subprocess.run([*programs["podman"], "image", "exists", f"docker.io/library/{BASE}"], env=environment)
    if have.returncode:
        pulled = subprocess.run(
            [*programs["podman"], "pull", f"docker.io/library/{BASE}"], env=environment, capture_output=True
        )
        if pulled.returncode:
            make_base(programs["podman"], environment, folder)
    say(f"base image {BASE} after {time.monotonic() - started:.0f} s")
    return build(tools, IMAGE)


def build(tools, name, *arguments):
    """Build the Dockerfile, layers of former builds taken again, and say how long it took; what podman knows of it."""
    programs, environment = tools
    started = time.monotonic()
    options = ["--pull-never", "--network", "host", "--runtime", "runc", "--isolation", "oci", "--layers"]
    arguments = [f"TORCH_INDEX_URL={os.environ.get('TORCH_INDEX_URL', '')}", *arguments]
    options += [part for argument in arguments for part in ("--build-arg", argument)]
    command = [*programs["buildah"], "bud", *options, *mounts_for_pip(), "-f", str(K8S / "Dockerfile"), "-t", name]
    call([*command, str(ROOT)], environment)
    (told,) = json.loads(call([*programs["podman"], "image", "inspect", name], environment))
    say(f"{name} built in {time.monotonic() - started:.0f} s, {told['Size'] / 1e9:.2f} GB")
    return told


@pytest.fixture
def engine(tools, image, tmp_path):
    programs, environment = tools
    return Podman(tmp_path, programs["podman"], IMAGE, environment)


def test_what_the_image_says_about_itself(image):
    settings = image["Config"]
    assert settings["User"] == "10001:10001" and settings["WorkingDir"] == "/opt/ct-enhance"
    assert settings["Entrypoint"] == ["python", "-m", "bundle"]
    assert settings["Labels"]["org.opencontainers.image.title"] == "ct-enhance"


def test_nothing_is_in_the_image_that_does_not_belong(engine, tools, image):
    programs, environment = tools
    run = [*programs["podman"], "run", "--rm", "--network", "none", "--read-only", "--entrypoint", "sh", IMAGE, "-c"]
    present = call(
        [*run, "cd /opt/ct-enhance; ls; find . -name '*.pt'; ls /opt/venv/bin; which gcc make || true"], environment
    )
    words = set(present.split())
    assert {"bundle", "configs", "models"} <= words
    assert not words & {"tests", "runs", ".git", "data", "pip", "gcc", "make"}
    assert "model.pt" not in present


@pytest.mark.parametrize("case", ["training_is_interrupted_and_goes_on", "killed_in_the_middle_of_a_save"])
def test_training(engine, tmp_path, case):
    write_phantom_series(tmp_path / "volume" / "data" / "scan", slices=40)
    started = time.monotonic()
    getattr(cases, case)(engine, volume(tmp_path / "volume", 10001))
    say(f"{case}: {time.monotonic() - started:.0f} s")


def test_inference(engine, tmp_path):
    started = time.monotonic()
    cases.each_series_is_restored_by_exactly_one_index(engine, tmp_path)
    say(f"inference in three indices, twice: {time.monotonic() - started:.0f} s")


def test_an_image_with_weights_restores_without_any_elsewhere(tools, image, tmp_path):
    name = f"{IMAGE}-weights"
    build(tools, name, "WITH_WEIGHTS=true")
    write_phantom_series(tmp_path / "volume" / "in", slices=3)
    storage = volume(tmp_path / "volume", 10001)
    programs, environment = tools
    run = [*programs["podman"], "run", "--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp:rw,mode=1777"]
    mounts = ["--user", "10001:10001", "--cap-drop", "ALL", "-v", f"{storage}:/workspace/storage"]
    call([*run, *mounts, name, "enhance", "/workspace/storage/in", "/workspace/storage/out"], environment)
    summary = json.loads((storage / "out" / "summary.json").read_text())
    assert [series["status"] for series in summary["series"].values()] == ["done"]
    assert len(list((storage / "out").glob("*/dicom/*.dcm"))) == 3
