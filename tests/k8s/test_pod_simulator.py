"""The Jobs' containers as their manifests say, under bubblewrap: what they end with, and what is left."""

import dataclasses
import errno
import json
import re
import signal

import pod_cases as cases
import pytest
from manifests import ROOT
from phantom_series import write_phantom_series
from pod_simulator import Bubblewrap, SmallVolume, pod_of_folder, volume
from test_docs import executed

STORAGE = "ct-enhance-storage"


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return Bubblewrap(tmp_path_factory.mktemp("pods"))


@pytest.fixture
def storage(tmp_path):
    """A volume with a series to train on and to restore."""
    write_phantom_series(tmp_path / "volume" / "data" / "scan", slices=40)
    return volume(tmp_path / "volume", 10001)


# ---- the pod itself -----------------------------------------------------------------------------------------

LOOK = """
import os, socket
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
# Started by somebody else than root, groups of that user stay, without a name in the pod: 65534.
groups = sorted({*os.getgroups()} - {65534, os.getgid()})
print(os.getuid(), os.getgid(), groups, os.getpid(), status["CapEff"].strip(), status["NoNewPrivs"].strip())
print(sorted(name for _, name in socket.if_nameindex()), os.getcwd(), os.environ["HOME"])
places = "/ /opt/ct-enhance /opt/ct-enhance/bundle /workspace /workspace/overrides /workspace/storage /tmp /dev/shm"
for path in places.split():
    try:
        open(path + "/probe", "w").close()
        os.remove(path + "/probe")
        print("writable", path)
    except OSError as error:
        print("closed", path, error.errno)
"""


def test_a_pod_is_as_closed_as_in_a_cluster(engine, storage):
    pod = pod_of_folder("overlays/cpu-smoke")
    container = engine.start(dataclasses.replace(pod, argv=("python", "-c", LOOK)), {STORAGE: storage})
    assert container.wait() == 0, container.log.read_text()
    first, second, *paths = container.log.read_text().splitlines()
    assert first == "10001 10001 [] 1 0000000000000000 1"
    assert second == "['lo'] /opt/ct-enhance /tmp"
    assert {line.split()[1] for line in paths if line.startswith("writable")} == {
        "/workspace/storage", "/tmp", "/dev/shm",
    }  # fmt: skip
    assert all(line.endswith(f" {errno.EROFS}") for line in paths if line.startswith("closed"))


# ---- bad input: the last line says what, the code says whether trying again helps ---------------------------


def ends(container, code, *words):
    assert container.wait() == code, container.log.read_text()[-3000:]
    line = container.last_line()
    assert line.startswith("error: ") and all(re.search(word, line) for word in words), line


def test_a_missing_file_of_the_config_map(engine, storage):
    pod = pod_of_folder("overlays/cpu-smoke")
    pod = dataclasses.replace(pod, files={path: {"other.yaml": ""} for path in pod.files})
    ends(engine.start(pod, {STORAGE: storage}), 2, "train.yaml", "cannot be read")


def test_a_misspelt_key_in_the_config_map(engine, storage):
    pod = pod_of_folder("overlays/cpu-smoke")
    pod = dataclasses.replace(pod, files={path: {"train.yaml": "batchsize: 2\n"} for path in pod.files})
    ends(engine.start(pod, {STORAGE: storage}), 2, "--batchsize", "--batch_size")


@pytest.mark.full
def test_no_data_on_the_volume(engine, tmp_path):
    storage = volume(tmp_path / "volume", 10001)
    ends(engine.start(pod_of_folder("overlays/cpu-smoke"), {STORAGE: storage}), 2, "dataset_dir 'data' is not a folder")


@pytest.mark.full
def test_no_gpu_on_the_node(engine, storage):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    ends(engine.start(pod_of_folder("overlays/train-1gpu"), {STORAGE: storage}), 2, "finds no GPU", "--device cpu")
    several = engine.start(pod_of_folder("overlays/train-multi-gpu"), {STORAGE: storage})
    ends(several, 2, "'nccl'", "finds 0 GPUs")


@pytest.mark.full
def test_a_volume_that_is_not_mounted(engine, storage):
    pod = pod_of_folder("overlays/cpu-smoke").without("/workspace/storage")
    ends(engine.start(pod, {}), 74, "output_dir 'smoke' cannot be written to: Read-only file system")


@pytest.mark.full
def test_a_volume_of_another_user(engine, storage):
    storage.chmod(0o755)
    cases.give_to_root(storage)
    ends(engine.start(pod_of_folder("overlays/cpu-smoke"), {STORAGE: storage}), 74, "output_dir 'smoke'", "written")


@pytest.mark.full
def test_a_full_volume(engine, storage):
    small = SmallVolume(30 * 2**20, {"data": storage / "data"})
    ends(engine.start(pod_of_folder("overlays/cpu-smoke"), {STORAGE: small}), 74, "No space left|could not be written")


# ---- training -----------------------------------------------------------------------------------------------


@pytest.mark.full
def test_training_is_interrupted_and_goes_on(engine, storage):
    cases.training_is_interrupted_and_goes_on(engine, storage)


@pytest.mark.full
def test_killed_in_the_middle_of_a_save(engine, storage):
    cases.killed_in_the_middle_of_a_save(engine, storage)


@pytest.mark.full
def test_training_by_hand_in_the_interactive_pod(engine, storage):
    """What docs/kubernetes.md says to kubectl exec, in a container as that pod has it."""
    (argv,) = [words for words in executed(ROOT / "docs" / "kubernetes.md") if "training" in words]
    pod = dataclasses.replace(pod_of_folder("interactive"), argv=tuple(argv))
    (smoke,) = pod_of_folder("overlays/cpu-smoke").files.values()
    container = engine.start(dataclasses.replace(pod, files={path: smoke for path in pod.files}), {STORAGE: storage})
    assert container.wait() == 0, container.log.read_text()[-3000:]
    assert (storage / "train" / "model.pt").is_file()


@pytest.mark.full
def test_processes_of_one_node(engine, storage):
    """train-multi-gpu as it is written, but two processes on the CPU in place of four GPUs."""
    pod = cases.on_the_cpu(pod_of_folder("overlays/train-multi-gpu"), processes=2)
    cases.several_processes_are_interrupted_and_go_on(engine, storage, [pod])


@pytest.mark.full
def test_pods_of_several_nodes(engine, storage):
    """train-multi-node: two pods that meet under the Service's name, which stands for loopback, a process in each."""
    folder = "overlays/train-multi-node"
    pods = [cases.on_the_cpu(pod_of_folder(folder, index=index), processes=1) for index in range(2)]
    (address,) = {pod.argv[pod.argv.index("--master_addr") + 1] for pod in pods}
    assert [pod.argv[pod.argv.index("--node_rank") + 1] for pod in pods] == ["0", "1"]
    cases.several_processes_are_interrupted_and_go_on(engine, storage, pods, network=True, hosts=[address])


# ---- inference ----------------------------------------------------------------------------------------------


@pytest.mark.full
def test_each_series_is_restored_by_exactly_one_index(engine, tmp_path):
    cases.each_series_is_restored_by_exactly_one_index(engine, tmp_path)


@pytest.mark.full
def test_a_night_restores_what_is_new(engine, tmp_path):
    write_phantom_series(tmp_path / "volume" / "in" / "scan", slices=4)
    storage = cases.with_tiny_weights(tmp_path / "volume")
    night = cases.with_overrides(pod_of_folder("nightly"), "inference.yaml", **cases.TINY)
    for number in range(2):
        container = engine.start(night, {STORAGE: storage})
        assert container.wait() == 0, container.log.read_text()[-3000:]
        assert ("skipped" in container.log.read_text()) == (number == 1)
    assert len(list((storage / "out").glob("*/dicom/*.dcm"))) == 4


@pytest.mark.full
def test_an_evaluation(engine, tmp_path):
    write_phantom_series(tmp_path / "volume" / "targets" / "scan", slices=4)
    storage = cases.with_tiny_weights(tmp_path / "volume")
    keys = {**cases.TINY, "classical": ["gaussian"], "phantom": False}
    pod = cases.with_overrides(pod_of_folder("evaluate"), "evaluate.yaml", **keys)
    container = engine.start(pod, {STORAGE: storage})
    assert container.wait() == 0, container.log.read_text()[-3000:]
    rows = json.loads((storage / "evaluation" / "metrics.json").read_text())["rows"]
    assert {"input", "restored", "gaussian"} <= {row["method"] for row in rows}


def test_signals_reach_process_one(engine, storage):
    """SIGTERM to process 1 is lost unless a handler is set: the commands set one before they import anything slow."""
    pod = pod_of_folder("overlays/cpu-smoke")
    container = engine.start(pod, {STORAGE: storage})
    cases.wait_until(lambda: "train.yaml\n" in container.log.read_text(), container)
    container.signal(signal.SIGTERM)
    ends(container, 75, "SIGTERM")
