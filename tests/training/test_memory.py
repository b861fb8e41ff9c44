import pytest
import torch
from training_fixtures import make_workflow

from bundle.errors import BundleError
from bundle.training import memory


@pytest.fixture(scope="module")
def trainer(scans, cache, tmp_path_factory):
    return make_workflow(scans, tmp_path_factory.mktemp("memory"), cache=cache)[1]


@pytest.mark.parametrize("phase", ["denoiser", "joint"])
def test_what_a_step_keeps_is_what_was_counted(trainer, phase):
    """Counted without computing, and first, against counted while computing; autoencoder frozen and learning."""
    step, kept = trainer.step, {}
    step.set_phase(next(one for one in trainer.plan.phases if one.name == phase))
    estimated = memory._activations(step, trainer.dataset.patch, trainer.batch_size)
    weights = {p.untyped_storage().data_ptr() for p in (*step.parameters(), *step.buffers())}
    alive = []

    def pack(value):
        place = value.untyped_storage().data_ptr()
        if place not in weights:
            kept[place] = value.untyped_storage().nbytes()
            alive.append(value)
        return value

    items = [trainer.dataset[index] for index in range(trainer.batch_size)]
    batch = {key: torch.stack([item[key] for item in items]) for key in items[0]}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        step(batch)
    assert estimated == pytest.approx(sum(kept.values()), rel=0.05)


def test_it_grows_with_the_batch_and_leaves_the_networks_alone(trainer):
    before = {name: value.clone() for name, value in trainer.restorer.state_dict().items()}
    patch = trainer.dataset.patch
    one, four = (memory._activations(trainer.step, patch, batch) for batch in (1, 4))
    assert four == pytest.approx(4 * one, rel=0.05)
    assert all(torch.equal(value, before[name]) for name, value in trainer.restorer.state_dict().items())


def test_too_little_memory_is_refused_with_what_to_reduce(trainer, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda _: 2**20)
    with pytest.raises(BundleError, match=r"only 0\.0 GiB are free \(reduce batch_size .*activation_checkpointing"):
        memory.require_memory(trainer)
    assert memory.require_memory(trainer, check="false")


def test_free_memory_of_this_machine():
    assert 2**27 < memory.free_bytes(torch.device("cpu")) < 2**50
