"""Pods that talk to a server: the hub and a PACS, both on loopback, with their secrets."""

import dataclasses

import pod_cases as cases
import pytest
from hub_files import hub_files
from hub_stub import HubStub
from orthanc_server import running_orthanc
from phantom_series import phantom_uid, write_phantom_series
from pod_simulator import Bubblewrap, pod_of_folder, volume

from bundle.errors import ExitCode

TOKEN, USER, PASSWORD = "hf_secret", "worker", "word$with signs"
SHORT = {
    **cases.TINY, "device": "cpu", "patch_size": 32, "num_slices": 4, "batch_size": 1, "steps_per_epoch": 1,
    "autoencoder_epochs": 0, "phase1_epochs": 0, "num_epochs": 1, "noise_realisations": 1, "validation_slices": 2,
    "log_pictures": False, "streaming": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return Bubblewrap(tmp_path_factory.mktemp("pods"))


def run(engine, pod, storage, **settings):
    container = engine.start(pod, {cases.STORAGE: storage}, network=True, **settings)
    return container.wait(), container


def hub_pod(stub, *, token=None):
    """The pod of train-hub, before a stub in place of the hub."""
    pod = pod_of_folder("overlays/train-hub", secrets={"token": token} if token else None)
    assert pod.variables.get("HF_TOKEN") == token
    pod = dataclasses.replace(pod, variables=pod.variables | {"HF_ENDPOINT": stub.url})
    (data,) = [argument for argument in pod.argv if argument.startswith("hf://")]
    return cases.with_overrides(cases.with_argument(pod, data, "hf://datasets/owner/name"), "train.yaml", **SHORT)


@pytest.mark.parametrize("needed", [pytest.param(None, marks=pytest.mark.full), TOKEN])
def test_training_on_the_hub(engine, tmp_path, needed):
    """Public data need no token; gated data end a pod without one with 2, and train with the Secret's."""
    stub = HubStub(hub_files(2), token=needed)
    storage = volume(tmp_path / "volume", 10001)
    try:
        if needed:
            code, container = run(engine, hub_pod(stub), storage)
            assert code == ExitCode.USER and "HF_TOKEN" in container.last_line(), container.log.read_text()[-3000:]
        code, container = run(engine, hub_pod(stub, token=needed), storage)
    finally:
        stub.close()
    assert code == 0, container.log.read_text()[-3000:]
    assert (storage / "train" / "model.pt").is_file() and TOKEN not in container.log.read_text()


def pacs_pod(server, password):
    """The worker's pod; the server stands on another port than in a cluster, and nobody waits for it to grow."""
    pod = pod_of_folder("overlays/pacs", secrets={"user": USER, "password": password})
    url = "http://ct-enhance-orthanc:8042/dicom-web"
    pod = cases.with_argument(pod, url, url.replace("8042", str(server.http_port)))
    return cases.with_overrides(cases.with_argument(pod, "300", "0"), "inference.yaml", **cases.TINY)


@pytest.mark.full
def test_the_worker_of_the_pacs_loop(engine, tmp_path):
    write_phantom_series(tmp_path / "a", patient="a", slices=4)
    storage = cases.with_tiny_weights(volume(tmp_path / "volume", 10001))
    (tmp_path / "orthanc").mkdir()
    with running_orthanc(tmp_path / "orthanc", user=USER, password=PASSWORD) as server:
        assert set(server.c_store(sorted((tmp_path / "a").iterdir()))) == {0}
        settings = {"hosts": ["ct-enhance-orthanc"]}
        code, container = run(engine, pacs_pod(server, "wrong"), storage, **settings)
        assert code == ExitCode.USER, container.log.read_text()[-3000:]
        code, container = run(engine, pacs_pod(server, PASSWORD), storage, **settings)
        assert code == 0 and "1 series sent, 0 refused" in container.last_line(), container.log.read_text()[-3000:]
        series = server.web().search_for_series(phantom_uid("a", "study"))
        assert len(series) == 2 and PASSWORD not in container.log.read_text()
