import copy
import math
import signal
import sys

import pytest
import torch
from ignite.engine import Events
from training_fixtures import ROOT, TINY, equal, make_workflow, run_child

from bundle.configuration import guard
from bundle.errors import BundleError, ExitCode, find_bundle_error
from bundle.networks.presets import build_restorer
from bundle.training.checkpoints import load_checkpoint
from bundle.training.optim import schedule
from bundle.training.phases import GROUPS

LENGTH = TINY["steps_per_epoch"]
EPOCHS = TINY["autoencoder_epochs"] + TINY["num_epochs"]
PHASE_OF_EPOCH = ["autoencoder", "denoiser", "denoiser", "joint"]
MULTIPLIERS = {
    "autoencoder": {"vae_encoder": 0.1, "vae_decoder": 0.1},
    "denoiser": {"unet": 1.0},
    "joint": {"unet": 1.0, "vae_encoder": 0.1, "vae_decoder": 0.1, "refiner": 2.0},
}


# ---- the config, through MONAI ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(scans, cache, tmp_path_factory):
    """A run through all phases, and what was seen on the way."""
    output = tmp_path_factory.mktemp("finished") / "run"
    workflow, trainer = make_workflow(scans, output, cache=cache)
    seen = {"start": [], "end": [], "rates": [], "latent": [], "losses": []}

    def weights():
        return {group: [p.detach().clone() for p in ps] for group, ps in trainer.restorer.groups().items()}

    def rates(engine):
        seen["rates"].append({group["name"]: group["lr"] for group in engine.optimizer.param_groups})
        seen["losses"].append(set(engine.state.output) - {"loss", "norm"})

    trainer.add_event_handler(Events.EPOCH_STARTED, lambda _: seen["start"].append(weights()))
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda e: seen["latent"].append(bool(e.restorer.measured)))
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: seen["end"].append(weights()))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, rates)
    workflow.run()
    return {"output": output, "trainer": trainer, "workflow": workflow, **seen}


def test_monai_finds_every_required_property(finished):
    assert finished["workflow"].check_properties() == []


def test_every_component_of_the_config_can_be_built(finished):
    parser = finished["workflow"].parser
    actions = {"initialize", "training"}
    for key in parser.get():
        if key not in actions:
            parser.get_parsed_content(key)


def test_a_misspelt_key_is_refused_with_the_nearest(monkeypatch):
    config = str(ROOT / "configs" / "train.yaml")
    hook = sys.excepthook
    monkeypatch.setattr(
        sys, "argv", ["monai/bundle/__main__.py", "run", "training", "--config_file", config, "--batch_sise", "3"]
    )
    with pytest.raises(BundleError, match=r"unknown option --batch_sise \(did you mean --batch_size\?\)"):
        guard(ROOT)
    sys.excepthook = hook


@pytest.mark.parametrize("missing", ["dataset_dir", "output_dir"])
def test_what_is_required_is_named(scans, tmp_path, missing):
    given = {"dataset_dir": scans, "output_dir": tmp_path, missing: None}
    with pytest.raises(Exception) as caught:
        make_workflow(**given)[0].run()
    assert f"{missing} is required: name it with --{missing}" in str(find_bundle_error(caught.value))


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"num_epochs": 1, "phase1_epochs": 2}, "phase 'joint': epochs must be 0 or more, not -1"),
        ({"patch_size": 256}, "no series is as large as a patch of 256 x 256 x 4"),
        ({"num_slices": 13}, "13"),
        ({"preset": "tinny"}, "preset 'tinny' is unknown"),
        ({"validation_folders": ["nobody"]}, "validation folder 'nobody' holds no usable case"),
        ({"weights_file": "missing.pt"}, "weights_file 'missing.pt' does not exist"),
    ],
)
def test_settings_that_cannot_work_are_one_line(scans, cache, tmp_path, settings, message):
    with pytest.raises(Exception) as caught:
        make_workflow(scans, tmp_path / "run", cache=cache, **settings)[0].run()
    error = find_bundle_error(caught.value)
    assert error is not None and error.exit_code == ExitCode.USER
    assert message in str(error) and "\n" not in str(error)
    assert not (tmp_path / "run" / "model.pt").exists()


def test_the_seed_decides_the_starting_weights(scans, cache, tmp_path):
    """Else two runs of one seed differ, and so does a run that was killed before its first checkpoint."""
    first, again = (
        make_workflow(scans, tmp_path / str(start), cache=cache, start=start)[1].restorer.state_dict()
        for start in (1, 2)
    )
    assert equal(dict(first), dict(again))


# ---- phases -----------------------------------------------------------------------------------------------


def test_each_phase_moves_what_it_trains_and_nothing_else(finished):
    assert len(finished["end"]) == EPOCHS
    for epoch, phase in enumerate(PHASE_OF_EPOCH):
        before, after = finished["start"][epoch], finished["end"][epoch]
        for group in GROUPS:
            same = [torch.equal(a, b) for a, b in zip(before[group], after[group], strict=True)]
            if group in MULTIPLIERS[phase]:
                assert not any(same), f"epoch {epoch}, {group}: {sum(same)} parameters stood still"
            else:
                assert all(same), f"epoch {epoch}, {group}: frozen parameters moved"


def test_between_epochs_nothing_moves(finished):
    for epoch in range(1, EPOCHS):
        assert equal(finished["end"][epoch - 1], finished["start"][epoch])


def test_learning_rate_of_each_group_in_each_iteration(finished):
    assert len(finished["rates"]) == EPOCHS * LENGTH
    epochs = {"autoencoder": (0, 1), "denoiser": (1, 2), "joint": (3, 1)}
    for iteration, rates in enumerate(finished["rates"]):
        phase = PHASE_OF_EPOCH[iteration // LENGTH]
        first, number = epochs[phase]
        factor = schedule(iteration - first * LENGTH, steps=number * LENGTH, warmup=2, final=0.03)
        for group in GROUPS:
            expected = TINY["learning_rate"] * MULTIPLIERS[phase].get(group, 0) * factor
            assert rates[group] == pytest.approx(expected, rel=1e-12)


def test_losses_of_each_phase(finished):
    terms = {
        "autoencoder": {"reconstruction", "kl"},
        "denoiser": {"unrefined"},
        "joint": {"unrefined", "refined", "reconstruction"},
    }
    assert finished["losses"] == [terms[PHASE_OF_EPOCH[i // LENGTH]] for i in range(EPOCHS * LENGTH)]


def test_latents_are_measured_once_after_stage_0(finished):
    assert finished["latent"] == [False, True, True, True]


def test_a_skipped_stage_0_leaves_the_autoencoder_lossless(scans, cache, tmp_path):
    workflow, trainer = make_workflow(
        scans, tmp_path, cache=cache, autoencoder_epochs=0, phase1_epochs=1, num_epochs=1, val_interval=9
    )
    start = copy.deepcopy(trainer.restorer.autoencoder.net.state_dict())
    workflow.run()
    assert trainer.state.iteration == LENGTH and bool(trainer.restorer.measured)
    assert equal(start, trainer.restorer.autoencoder.net.state_dict())


def test_what_a_run_leaves(finished):
    output = finished["output"]
    kept = {path.name for path in (output / "checkpoints").glob("*.pt")}
    assert kept == {"checkpoint_best.pt", "checkpoint_final.pt", *(f"checkpoint_epoch_{n}.pt" for n in (1, 2, 3))}
    assert all((output / "checkpoints" / f"{name}.sha256").is_file() for name in kept)
    assert list((output / "tensorboard").iterdir()) and (output / "data.json").is_file()
    weights = torch.load(output / "model.pt", weights_only=True)
    fresh = build_restorer("tiny")
    fresh.load_state_dict(weights)
    assert equal(dict(fresh.state_dict()), load_checkpoint(output / "checkpoints" / "checkpoint_final.pt")["ema"])


def test_validation_ran_through_the_sampler(finished):
    evaluator = finished["workflow"].parser.get_parsed_content("validate#evaluator")
    assert all(math.isfinite(value) for value in evaluator.state.metrics.values())
    assert evaluator.network is finished["trainer"].average.module


# ---- resume -----------------------------------------------------------------------------------------------

# Inside an epoch, at its end after and before its checkpoint, at the ends of phases.
KILLS = [("iteration", 3), ("epoch", 4), ("iteration", 7), ("iteration", 8), ("iteration", 12), ("iteration", 14)]


def losses(log):
    """Loss of each iteration; an iteration that was run twice has to give the same one twice."""
    found = {}
    for line in log.read_text().splitlines():
        iteration, loss = line.split()
        assert found.setdefault(int(iteration), loss) == loss, f"iteration {iteration} was not repeated exactly"
    return found


@pytest.mark.parametrize("workers,accumulation,kills", [(0, 1, KILLS), (0, 2, KILLS[1:4]), (2, 2, KILLS[2:3])])
def test_killed_again_and_again_the_result_is_the_same_to_the_bit(scans, cache, tmp_path, workers, accumulation, kills):
    settings = {
        "dataset_dir": scans,
        "cache": cache,
        "num_workers": workers,
        "gradient_accumulation_steps": accumulation,
        "checkpoint_every": 3,
        "val_interval": 100,
    }
    assert run_child(tmp_path / "whole.log", None, output_dir=tmp_path / "whole", **settings) == 0
    for kill in kills:
        code = run_child(tmp_path / "killed.log", kill, output_dir=tmp_path / "killed", **settings)
        assert code == -signal.SIGKILL
    assert not (tmp_path / "killed" / "model.pt").exists()
    assert run_child(tmp_path / "killed.log", None, output_dir=tmp_path / "killed", **settings) == 0

    whole, killed = losses(tmp_path / "whole.log"), losses(tmp_path / "killed.log")
    assert sorted(whole) == list(range(1, EPOCHS * LENGTH + 1))
    assert killed == whole
    assert len((tmp_path / "killed.log").read_text().splitlines()) > len(whole)  # something was lost and repeated
    final = [load_checkpoint(tmp_path / run / "checkpoints" / "checkpoint_final.pt") for run in ("whole", "killed")]
    assert equal(*final)
    assert equal(*(torch.load(tmp_path / run / "model.pt", weights_only=True) for run in ("whole", "killed")))


def test_a_plan_in_steps_ends_within_an_epoch_after_validation_and_checkpoint(scans, cache, tmp_path):
    """Phases change within epochs too; an optimizer step never reaches over a change."""
    settings = {"autoencoder_steps": 3, "phase1_steps": 4, "num_steps": 7, "gradient_accumulation_steps": 2}
    workflow, trainer = make_workflow(scans, tmp_path, cache=cache, **settings)
    seen, ended = [], []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: seen.append((e.phase.name, e.between_updates)))
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda e: ended.append(e.state.iteration))
    workflow.run()
    assert [name for name, _ in seen] == ["autoencoder"] * 3 + ["denoiser"] * 4 + ["joint"] * 3
    assert [n for n, (_, between) in enumerate(seen, 1) if between] == [2, 3, 4, 6, 7, 8, 10]
    assert ended == [4, 8, 10]
    assert load_checkpoint(tmp_path / "checkpoints" / "checkpoint_epoch_2.pt")["trainer"]["iteration"] == 10
    again, trainer = make_workflow(scans, tmp_path, cache=cache, **settings)
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda _: pytest.fail("it was done"))
    again.run()


def test_the_adversary_trains_and_resumes(scans, cache, tmp_path):
    settings = {"adversarial_weight": 0.05, "perceptual_weight": 0.1, "num_epochs": 1, "phase1_epochs": 1}
    settings |= {"autoencoder_epochs": 2, "checkpoint_every": 3, "val_interval": 100}
    make_workflow(scans, tmp_path / "whole", cache=cache, **settings)[0].run()
    workflow, trainer = make_workflow(scans, tmp_path / "stopped", cache=cache, **settings)
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda e: e.stop_asked.set() if e.state.iteration == 6 else 0)
    with pytest.raises(Exception) as caught:
        workflow.run()
    assert "stopped after iteration 6" in str(find_bundle_error(caught.value))
    make_workflow(scans, tmp_path / "stopped", cache=cache, **settings)[0].run()
    finals = [load_checkpoint(tmp_path / n / "checkpoints" / "checkpoint_final.pt") for n in ("whole", "stopped")]
    assert "adversary" in finals[0] and equal(*finals)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"patch_size": 36}, "multiple of 8"),
        ({"patch_size": 16, "mixed_precision": "bf16"}, "bfloat16 on a CPU"),
    ],
)
def test_patches_that_cannot_be_trained_are_refused(scans, cache, tmp_path, changes, says):
    with pytest.raises(Exception) as raised:
        make_workflow(scans, tmp_path, **{"training_data#cache_dir": str(cache), **changes})
    assert says in str(find_bundle_error(raised.value))


def test_the_quick_recipe_trains_stage_by_stage_and_goes_on_from_finished_weights(scans, cache, tmp_path):
    steps = {"denoiser_steps": 1, "refiner_steps": 1, "joint_steps": 1, "patch_size": 32, "mixed_precision": "off"}
    names = ("train.yaml", "quick.yaml")
    workflow, trainer = make_workflow(scans, tmp_path / "first", cache=cache, configs=names, **steps)
    workflow.run()
    assert trainer.state.iteration == 3
    first = torch.load(tmp_path / "first" / "model.pt", weights_only=True)
    on = {**steps, "denoiser_steps": 0, "refiner_steps": 0, "weights_file": str(tmp_path / "first" / "model.pt")}
    workflow, trainer = make_workflow(scans, tmp_path / "on", cache=cache, configs=names, **on)
    workflow.run()
    assert trainer.state.iteration == 1 and trainer.step.start_fraction == 0.8
    second = torch.load(tmp_path / "on" / "model.pt", weights_only=True)
    moved = {name.split(".")[0] for name, value in first.items() if not torch.equal(value, second[name])}
    assert moved == {"denoiser", "refiner"}, "the autoencoder stays as it is"


def test_the_recipe_for_thin_slices_trains_on_thick_ones_without_simulated_noise(scans, cache, tmp_path):
    steps = {"denoiser_steps": 1, "refiner_steps": 1, "joint_steps": 1, "patch_size": 32, "mixed_precision": "off"}
    thicker = {"slice_thickness_mm": [50.0], "num_slices": 2}  # the fixture's slices are few and thick
    workflow, trainer = make_workflow(
        scans, tmp_path / "out", configs=("train.yaml", "quick.yaml", "thin.yaml"), **steps, **thicker
    )
    workflow.run()
    assert trainer.state.iteration == 3 and trainer.step.pixel_loss.keywords == {"corner": 30, "noisy_weight": 2}
    kinds = {step["kind"] for index in range(8) for step in trainer.dataset.metadata((0, index))["degradation"]}
    assert kinds == {"thick_slices"}
