import lzma
from pathlib import Path

import pytest
import torch
from ignite.engine import Events
from training_fixtures import equal, make_workflow

from bundle.data.joining import FixedParts
from bundle.errors import BundleError, find_bundle_error
from bundle.training.checkpoints import load_checkpoint
from bundle.training.state import _identity, restore_state, restore_weights, trainer_state

SHORT = {"phase1_epochs": 1, "num_epochs": 1, "steps_per_epoch": 2, "val_interval": 100}


@pytest.fixture(scope="module")
def done(scans, cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("state") / "run"
    workflow, trainer = make_workflow(scans, folder, cache=cache, **SHORT)
    workflow.run()
    return folder, trainer


def fresh(scans, cache, folder, **settings):
    return make_workflow(scans, folder, cache=cache, start=7, **{**SHORT, "seed": 0, **settings})


def test_a_state_comes_back_whole(done, scans, cache, tmp_path):
    saved = trainer_state(done[1])
    trainer = fresh(scans, cache, tmp_path)[1]
    restore_state(trainer, saved, name="x.pt")
    assert equal(trainer_state(trainer), saved)


def test_only_tensors_and_plain_types(done, tmp_path):
    torch.save(trainer_state(done[1]), tmp_path / "x.pt")
    torch.load(tmp_path / "x.pt", weights_only=True)


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"num_slices": 3}, "another patch_size and num_slices: [32, 32, 4], this run has [32, 32, 3]"),
        ({"seed": 3}, "another seed: 0, this run has 3"),
        ({"validation_fraction": 0.6}, "another set of training series: "),
    ],
)
def test_what_differs_is_named_with_what_else_can_be_done(done, scans, cache, tmp_path, settings, message):
    if "validation_fraction" in settings:
        trainer = fresh(scans, cache, tmp_path)[1]
        trainer.dataset.source = FixedParts([])
    else:
        trainer = fresh(scans, cache, tmp_path, **settings)[1]
    with pytest.raises(BundleError) as caught:
        restore_state(trainer, trainer_state(done[1]), name="x.pt")
    assert message in str(caught.value) and "--resume_weights_only true" in str(caught.value)


def test_the_first_tensor_that_does_not_fit_is_named(done, scans, cache, tmp_path):
    saved = trainer_state(done[1])
    name = next(iter(saved["network"]))
    saved["network"] = {**saved["network"], name: torch.zeros(1, 2)}
    with pytest.raises(BundleError, match=rf"of other networks: '{name}' is \(1, 2\), here"):
        restore_weights(fresh(scans, cache, tmp_path)[1], saved, name="x.pt")


def test_weights_only_begins_anew_with_other_settings_and_then_resumes_itself(done, scans, cache, tmp_path):
    settings = {"num_slices": 3, "resume_weights_only": True, "checkpoint_every": 1}
    source = str(done[0] / "checkpoints" / "checkpoint_final.pt")
    workflow, trainer = fresh(scans, cache, tmp_path, resume=source, **settings)
    seen = []
    trainer.add_event_handler(Events.EPOCH_STARTED(once=1), lambda e: seen.append(e.restorer.state_dict().copy()))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: e.stop_asked.set() if e.state.iteration == 2 else 0)
    with pytest.raises(Exception) as caught:
        workflow.run()
    assert "stopped after" in str(find_bundle_error(caught.value))
    newest = load_checkpoint(tmp_path / "checkpoints" / "checkpoint_step_2.pt")
    assert newest["meta"]["begun_by_weights"] and newest["trainer"]["iteration"] == 2
    workflow, trainer = fresh(scans, cache, tmp_path, **settings)
    steps = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: steps.append(e.state.iteration))
    workflow.run()
    assert steps == [3, 4]


def test_a_checkpoint_of_version_0_2_0_goes_on(scans, cache, tmp_path):
    """It knows nothing of the keys that came later; its series were phantoms prepared by that version."""
    asset = Path(__file__).resolve().parents[1] / "assets" / "checkpoint_0.2.0_tiny.pt.xz"
    (tmp_path / "old.pt").write_bytes(lzma.decompress(asset.read_bytes()))
    workflow, trainer = make_workflow(scans, tmp_path / "run", cache=cache, resume=str(tmp_path / "old.pt"))
    steps = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: steps.append((e.state.iteration, e.phase.name)))
    workflow.run()
    assert [step for step, _ in steps] == list(range(5, 17)) and steps[0][1] == "denoiser"
    assert (tmp_path / "run" / "model.pt").is_file()


def test_identity_holds_plain_values(done):
    assert all(isinstance(value, int | str | list) for value in _identity(done[1]).values())
