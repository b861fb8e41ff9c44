import pytest
from phantom_series import write_phantom_series
from tiny_workflows import ROOT, write_tiny_weights

from bundle.commands.plan import make_plan, spoken
from bundle.errors import BundleError, find_bundle_error

CONFIG = [str(ROOT / "configs" / "inference.yaml")]


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    write_phantom_series(folder / "in" / "good", slices=10, size=64)
    write_phantom_series(folder / "in" / "gap", slices=10, size=64, drop=(4,), patient="p2")
    weights = write_tiny_weights(folder / "model.pt", part="denoiser", scale=0.02)
    small = {"preset": "tiny", "weights_file": str(weights), "device": "cpu", "mixed_precision": "off"}
    return {**small, "dataset_dir": str(folder / "in"), "output_dir": str(folder / "out")}


def test_says_what_would_be_done_and_writes_nothing(options, tmp_path):
    plan = make_plan(CONFIG, {**options, "tile_size": [64, 64, 4], "slice_overlap": 1})
    assert [one["size"] for one in plan["series"]] == [[64, 64, 10]] and plan["series"][0]["tiles"] == 3
    assert len(plan["refused"]) == 1 and "slice" in plan["refused"][0]["reason"]
    assert plan["estimated_memory_gb"] >= 0.7 and plan["number_format"] == "float32"
    text = spoken(plan)
    assert "would restore 1 series, and refuse 1" in text and "64 x 64 x 10" in text
    assert not (tmp_path / "out").exists()


def test_only_what_is_selected_is_planned(options):
    assert [one["size"] for one in make_plan(CONFIG, {**options, "max_samples": 1})["series"]] == [[64, 64, 10]]
    with pytest.raises(RuntimeError) as caught:
        make_plan(CONFIG, {**options, "select_description": "no such series"})
    assert "no series fits the rules" in str(find_bundle_error(caught.value))
    plan = make_plan(CONFIG, {**options, "select_description": "no such series", "tolerate_bad_series": True})
    assert plan["series"] == [] and "would restore 0 series" in spoken(plan)


def test_a_place_that_the_run_would_refuse(options):
    with pytest.raises(BundleError, match="output_dir lies in dataset_dir"):
        make_plan(CONFIG, {**options, "output_dir": f"{options['dataset_dir']}/out"})


def test_more_steps_take_longer(options):
    one, many = (make_plan(CONFIG, {**options, "steps": steps}) for steps in (1, 40))
    assert many["series"][0]["estimated_seconds"] >= one["series"][0]["estimated_seconds"]
    assert many["steps"] == 40


def test_what_the_run_would_refuse(options):
    with pytest.raises(RuntimeError) as caught:  # MONAI wraps what a component raises; the command unwraps it
        make_plan(CONFIG, {**options, "steps": 0})
    assert "steps" in str(find_bundle_error(caught.value))


def test_thin_slices_are_counted(options):
    thin = {**options, "task": "denoise", "slice_spacing_mm": 0.5}
    assert make_plan(CONFIG, thin)["series"][0]["size"] == [64, 64, 46]  # 9 x 2.5 mm and both ends
    plan = make_plan(CONFIG, {**thin, "slice_spacing_mm": 3.0})
    assert plan["series"] == [] and any("more than the 2.5 mm" in one["reason"] for one in plan["refused"])
