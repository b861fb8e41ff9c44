import pytest

from bundle.errors import BundleError, ExitCode
from bundle.training.losses import LOSS_TERMS
from bundle.training.phases import GROUPS, Phase, PhasePlan


def phase(name="p", epochs=1, multipliers=None, losses=None):
    return {
        "name": name,
        "epochs": epochs,
        "multipliers": {"unet": 1.0} if multipliers is None else multipliers,
        "losses": {"unrefined": 1.0} if losses is None else losses,
    }


def test_every_epoch_has_its_phase():
    plan = PhasePlan([phase("a", 2), phase("b", 0), phase("c", 3), phase("d", 1)])
    assert plan.max_epochs == 6
    found = [plan.at(epoch) for epoch in range(6)]
    assert [p.name for p, _, _ in found] == ["a", "a", "c", "c", "c", "d"]
    assert [first for _, first, _ in found] == [0, 0, 2, 2, 2, 5]
    assert [number for _, _, number in found] == [0, 0, 1, 1, 1, 2]
    with pytest.raises(ValueError, match="epoch 6 lies behind the last phase"):
        plan.at(6)


def test_what_has_no_rate_is_frozen():
    assert Phase(**phase(multipliers={"unet": 0.5, "refiner": 0.0})).trains == {"unet"}


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("loss", LOSS_TERMS)
def test_known_names_pass(group, loss):
    Phase(**phase(multipliers={group: 1.0}, losses={loss: 1.0}))


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"multipliers": {"unett": 1.0}}, "parameter group 'unett' is unknown; known are unet, "),
        ({"losses": {"refine": 1.0}}, "loss 'refine' is unknown; known are refined, "),
        ({"epochs": -1}, "epochs must be 0 or more, not -1"),
        ({"multipliers": {"unet": -0.1, "refiner": 1.0}}, "multipliers must be 0 or more"),
        ({"multipliers": {"unet": 0.0}}, "multipliers must be 0 or more, and one above 0"),
        ({"multipliers": {}}, "multipliers must be 0 or more, and one above 0"),
        ({"losses": {"kl": 0.0}}, "no loss has a weight"),
        ({"losses": {}}, "no loss has a weight"),
    ],
)
def test_what_cannot_work_is_one_line(fields, message):
    with pytest.raises(BundleError, match=message) as caught:
        PhasePlan([{**phase("joint"), **fields}])
    assert caught.value.exit_code == ExitCode.USER
    assert "phase 'joint'" in str(caught.value) and "\n" not in str(caught.value)


def test_nothing_to_do():
    with pytest.raises(BundleError, match="nothing to train"):
        PhasePlan([phase(epochs=0)])
