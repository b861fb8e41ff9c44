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


def test_every_iteration_has_its_phase():
    plan = PhasePlan([phase("a", 2), phase("b", 0), phase("c", 3), phase("d", 1)])
    assert plan.total(4) == 24
    spans = [plan.at(iteration, 4) for iteration in range(24)]
    assert [span.phase.name for span in spans] == ["a"] * 8 + ["c"] * 12 + ["d"] * 4
    assert [span.number for span in spans] == [0] * 8 + [1] * 12 + [2] * 4
    assert [(span.first, span.end) for span in plan.spans(4)] == [(0, 8), (8, 20), (20, 24)]
    assert plan.at(24, 4).phase.name == "d"


def test_phases_may_be_given_in_steps_and_mixed():
    plan = PhasePlan([{**phase("a", 2), "steps": 3}, phase("b", 1), {**phase("c", 0), "steps": 2}])
    assert [(span.phase.name, span.first, span.end) for span in plan.spans(4)] == [
        ("a", 0, 3),
        ("b", 3, 7),
        ("c", 7, 9),
    ]
    with pytest.raises(BundleError, match="nothing to train"):
        PhasePlan([{**phase("a", 2), "steps": 0}])


def test_what_has_no_rate_is_frozen():
    assert Phase(**phase(multipliers={"unet": 0.5, "refiner": 0.0})).trains == {"unet"}


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_that_no_loss_reaches_is_refused(group):
    """Refined reaches everything; the reconstruction neither the denoiser nor the refiner; KL only the encoder."""
    reached = {"refined": set(GROUPS), "reconstruction": {"vae_encoder", "vae_decoder"}, "kl": {"vae_encoder"}}
    reached["unrefined"] = set(GROUPS) - {"refiner"}
    reached["target"] = {"unet", "vae_encoder"}
    for loss in LOSS_TERMS[:5]:
        fields = phase(multipliers={group: 1.0}, losses={loss: 1.0})
        if group in reached[loss]:
            assert Phase(**fields).trains == {group}
        else:
            with pytest.raises(BundleError, match=f"it trains {group}, which none of its losses reaches"):
                Phase(**fields)


def test_a_phase_that_leaves_parameters_without_gradient_says_so():
    """The encoder's variance is only in the autoencoder's own terms; DDP has to know."""
    fields = phase(multipliers={"vae_encoder": 1.0}, losses={"refined": 1.0})
    assert Phase(**fields).leaves_some_out
    assert not Phase(**{**fields, "losses": {"refined": 1.0, "kl": 1.0}}).leaves_some_out
    assert not Phase(**phase()).leaves_some_out


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"multipliers": {"unett": 1.0}}, "parameter group 'unett' is unknown; known are unet, "),
        ({"losses": {"refine": 1.0}}, "loss 'refine' is unknown; known are refined, "),
        ({"epochs": -1}, "epochs must be 0 or more, not -1"),
        ({"epochs": 1.5}, "epochs must be a whole number, not 1.5"),
        ({"steps": -2}, "steps must be 0 or more, not -2"),
        ({"epoch": 2}, "unknown key 'epoch'"),
        ({"multipliers": {"unet": 1.0e3}}, "none above 100"),
        ({"losses": {"unrefined": -1.0}}, "a loss is below 0"),
        ({"multipliers": {"unet": -0.1, "refiner": 1.0}}, "multipliers must be 0 or more"),
        ({"multipliers": {"unet": 0.0}}, "multipliers must be 0 or more, and one above 0"),
        ({"multipliers": {}}, "multipliers must be 0 or more, and one above 0"),
        ({"losses": {"kl": 0.0}}, "no loss has a weight"),
        ({"losses": {}}, "no loss has a weight"),
        ({"start_fraction": 1.1}, "start_fraction must be between 0 and 1, not 1.1"),
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
