"""A training begins with the first archives of the hub, and is the same whenever the others come."""

import json
import threading

import pytest
import torch
from hub_files import hub_files
from hub_stub import HubStub
from ignite.engine import Events
from training_fixtures import make_workflow, run_child

from bundle.data import background
from bundle.data.preparation import prepare_ahead
from bundle.errors import BundleError, ExitCode, find_bundle_error

pytestmark = pytest.mark.full
PATIENTS = 5
URL = "hf://datasets/owner/name"
SETTINGS = {
    "autoencoder_epochs": 0,
    "phase1_epochs": 1,
    "num_epochs": 2,
    "steps_per_epoch": 8,
    "checkpoint_every": 1,
    "val_interval": 1,
    "validation_slices": 2,
    "streaming_validation": 1,
}


@pytest.fixture(scope="module")
def files():
    return hub_files(PATIENTS, slices=12, size=64)


@pytest.fixture
def stub(files, monkeypatch):
    server = HubStub(dict(files))
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    yield server
    for event in server.held.values():
        event.set()
    server.close()


def lines(log):
    return log.read_text().splitlines()


@pytest.fixture(scope="module")
def reference(files, tmp_path_factory):
    """Losses of a run for which all archives lay prepared."""
    folder = tmp_path_factory.mktemp("reference")
    server = HubStub(dict(files))
    patch = pytest.MonkeyPatch()
    patch.setenv("HF_ENDPOINT", server.url)
    try:
        data = make_workflow(URL, folder / "run", **SETTINGS)[0].parser.get_parsed_content("training_data")
        prepare_ahead(data, folder / "run")
        sent = dict(server.sent)
        assert run_child(folder / "log", None, dataset_dir=URL, output_dir=folder / "run", **SETTINGS) == 0
        assert dict(server.sent) == sent, "what is prepared is not fetched again"
    finally:
        patch.undo()
        server.close()
    return lines(folder / "log"), [archive.path for archive in data.stream.training]


def test_the_first_step_comes_before_the_last_archive_and_the_samples_are_the_same(stub, reference, tmp_path):
    losses, training = reference
    stub.held = {path: threading.Event() for path in training[2:]}
    stub.faults.update({path: ["slow"] for path in training})
    workflow, trainer = make_workflow(URL, tmp_path / "run", **SETTINGS)
    found, seen = [], []

    def note(engine):
        found.append(f"{engine.state.iteration} {engine.state.output['loss'].hex()}")
        if engine.state.iteration == 1:
            seen.append([path for path in training if stub.sent[path]])
            for event in stub.held.values():
                event.set()

    trainer.add_event_handler(Events.ITERATION_COMPLETED, note)
    torch.use_deterministic_algorithms(True)
    try:
        workflow.run()
    finally:
        torch.use_deterministic_algorithms(False)
    assert set(seen[0]) <= set(training[:2]), "the other archives were held back until then"
    assert found == losses
    told = json.loads((tmp_path / "run" / "data.json").read_text())
    assert told["cases"] == {"used": PATIENTS, "skipped": 2} and "archives_awaited" not in told
    assert "archive is empty" in told["skipped"].values()


def test_a_run_that_is_killed_while_archives_come_goes_on_with_the_same_samples(stub, reference, tmp_path):
    losses, training = reference
    stub.held = {training[-1]: threading.Event()}
    arguments = {"dataset_dir": URL, "output_dir": tmp_path / "run", **SETTINGS, "num_workers": 2}
    assert run_child(tmp_path / "first", ("iteration", 3), **arguments) < 0
    assert not stub.sent[training[-1]]
    stub.held[training[-1]].set()
    assert run_child(tmp_path / "second", None, **arguments) == 0
    first, second = lines(tmp_path / "first"), lines(tmp_path / "second")
    assert first[:3] == losses[:3]
    assert second == losses[-len(second) :] and len(first) + len(second) >= len(losses)


def test_what_ends_the_preparation_ends_the_run_with_its_own_words_and_code(stub, reference, tmp_path):
    """The run stops when a sample needs what is lacking, and not with the traceback of a loader's worker."""
    _, training = reference
    stub.held = {path: threading.Event() for path in training[1:]}
    workflow, trainer = make_workflow(URL, tmp_path / "run", **SETTINGS, num_workers=1)
    stream = workflow.parser.get_parsed_content("training_data").stream

    def fail(engine):
        if engine.state.iteration == 1:
            failure = BundleError("the disk is full", hint="free some space", exit_code=ExitCode.IO)
            background._write_failure(stream._job._failure, failure)

    trainer.add_event_handler(Events.ITERATION_COMPLETED, fail)
    with pytest.raises(RuntimeError) as caught:
        workflow.run()
    found = find_bundle_error(caught.value)
    assert str(found) == "the disk is full (free some space)" and found.exit_code == ExitCode.IO
    assert not stream._job.running
