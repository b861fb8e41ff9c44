import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from phantom_series import write_phantom_series
from tiny_workflows import ROOT, run_tiny, write_tiny_weights

from bundle.commands import plan as plan_module
from bundle.commands.plan import make_plan, spoken
from bundle.errors import BundleError, find_bundle_error
from bundle.networks.presets import PRESETS, build_restorer
from bundle.restoration.api import inference_parser
from bundle.restoration.inferer import RestorationInferer

CONFIG = [str(ROOT / "configs" / "inference.yaml")]

IN_TILES = {"tile_size": [64, 64, 4], "slice_overlap": 1, "slices_at_once": 0}


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    write_phantom_series(folder / "in" / "good", slices=10, size=64)
    write_phantom_series(folder / "in" / "gap", slices=10, size=64, drop=(4,), patient="p2")
    weights = write_tiny_weights(folder / "model.pt", part="denoiser", scale=0.02)
    small = {"preset": "tiny", "weights_file": str(weights), "device": "cpu", "mixed_precision": "off"}
    return {**small, "dataset_dir": str(folder / "in"), "output_dir": str(folder / "out")}


def test_says_what_would_be_done_and_writes_nothing(options):
    plan = make_plan(CONFIG, {**options, **IN_TILES})
    assert [one["size"] for one in plan["series"]] == [[64, 64, 10]] and plan["series"][0]["tiles"] == 3
    assert len(plan["refused"]) == 1 and "slice" in plan["refused"][0]["reason"]
    assert plan["number_format"] == "float32"
    text = spoken(plan)
    assert "would restore 1 series, and refuse 1" in text and "64 x 64 x 10" in text
    assert not Path(options["output_dir"]).exists()


def test_rounds_are_timed_without_a_file(options):
    plan = make_plan(CONFIG, {**options, "tile_size": [512, 512, 6], "slice_overlap": 2, "flips": 2})
    assert plan["series"][0]["tiles"] == 1 and plan["flips"] == 2
    assert not Path(options["output_dir"]).exists()


def test_what_is_done_is_not_planned_again(options, tmp_path):
    out = {**options, "output_dir": str(tmp_path / "out")}
    run_tiny(
        "inference.yaml",
        "inference",
        weights=options["weights_file"],
        **{key: out[key] for key in ("dataset_dir", "output_dir")},
    )
    plan = make_plan(CONFIG, out)
    assert plan["series"] == [] and len(plan["finished"]) == 1
    assert "would restore 0 series, skip 1 that are done, and refuse 1" in spoken(plan)
    assert len(make_plan(CONFIG, {**out, "strength": 0.5})["series"]) == 1


def test_a_datalist_is_planned_as_the_run_takes_it(options, tmp_path):
    path = tmp_path / "list.json"
    path.write_text(json.dumps([{"label": f"{options['dataset_dir']}/good"}]))
    plan = make_plan(CONFIG, {**options, "dataset_dir": str(path)})
    assert [one["size"] for one in plan["series"]] == [[64, 64, 10]] and plan["refused"] == []


def gigabytes(options, **changes):
    return make_plan(CONFIG, {**options, **changes})["estimated_memory_gb"]


# Own MiB as scripts/bench_memory.py prints them (--preset full --size SIDE --slices N --num_threads 2 --mixed_precision
# off, LIDC_0314, version 0.2.0): rows and columns, slices.
FULL_MIB = {(128, 24): 3949, (192, 24): 6050}


def test_memory_of_full_is_near_what_was_measured():
    with torch.device("meta"):
        network = build_restorer("full")
    found = {}
    for (side, slices), mib in FULL_MIB.items():
        cut = {"tile_size": PRESETS["full"].tile_size, "mixed_precision": "off"}
        grid = plan_module._Grid((side, side, slices), (side, side, slices))
        estimate = plan_module._memory_gb(grid, network, RestorationInferer(**cut), "full")
        found[side] = estimate / (mib * 2**20 / 1e9)
    assert all(0.95 <= ratio <= 1.35 for ratio in found.values()), found


def estimated(size, **changes):
    """GB of a series of that size."""
    options = {"device": "cpu", "output_dir": "elsewhere", **changes}
    network, inferer = plan_module._built(inference_parser(**options))
    return plan_module._memory_gb(plan_module._Grid(size, size), network, inferer, "small")


# Peaks of resident memory in MiB as scripts/bench_memory.py prints them (--num_threads 2, LIDC_0314, version 0.2.0, an
# EPYC with bfloat16; those in tiles and of 300 slices in bfloat16 a Xeon with AMX, four steps in float32 one without):
# slices, rows and columns of the body's box, mixed_precision, slices_at_once, steps.
RESIDENT_MIB = {
    (50, (512, 416), "bf16", 4, 1): 1432,
    (100, (512, 512), "bf16", 4, 1): 1703,
    (300, (512, 512), "bf16", 4, 1): 1862,
    (1000, (512, 512), "bf16", 4, 1): 1723,
    (100, (512, 512), "bf16", 0, 1): 3089,
    (100, (512, 512), "off", 4, 1): 2183,
    (300, (512, 512), "off", 4, 1): 2255,
    (100, (512, 512), "off", 0, 1): 3871,
    (100, (512, 512), "bf16", 4, 4): 3305,
    (300, (512, 512), "bf16", 4, 4): 3504,
    (100, (512, 512), "off", 4, 4): 4543,
}
# GB, as scripts/bench_inference.py --memory prints them on the Xeon in bfloat16.
TILE_GB = {(256, 256, 8): 0.80, (256, 256, 24): 1.04, (512, 512, 8): 1.28, (512, 512, 16): 1.73, (512, 512, 24): 2.30}
TILE_GB |= {(512, 512, 32): 2.71, (512, 512, 40): 2.98}


def test_memory_is_near_what_was_measured():
    found = {}
    for case, mib in RESIDENT_MIB.items():
        slices, plane, precision, at_once, steps = case
        estimate = estimated((*plane, slices), mixed_precision=precision, slices_at_once=at_once, steps=steps)
        found[case] = estimate / (mib * 2**20 / 1e9)
    for size, gb in TILE_GB.items():
        found[size] = estimated(size, mixed_precision="bf16", slices_at_once=0) / gb
    assert all(1 <= ratio <= 1.35 for ratio in found.values()), found


def test_memory_knows_tiles_and_number_format_and_not_the_kind_of_file(options, tmp_path, monkeypatch):
    monkeypatch.setattr(plan_module, "seconds_per_voxel", lambda *_: 0.0)
    write_phantom_series(tmp_path / "in", slices=24, size=256)
    large = {**options, "dataset_dir": str(tmp_path / "in"), "tile_size": [512, 512, 24]}
    whole = gigabytes(large)
    assert gigabytes({**large, "mixed_precision": "bf16"}) < whole
    assert gigabytes({**large, "tile_size": [128, 128, 24]}) < whole
    assert gigabytes({**large, "spacing_mm": [0.4, 0.4, -1]}) > whole  # four times the voxels, up to one tile
    flowing = {**large, "tile_size": [512, 512, 12]}
    assert gigabytes(flowing) <= whole < gigabytes({**flowing, "slices_at_once": 24})
    deep = np.zeros((256, 256, 400), np.int16)
    deep[0] = -1000
    (tmp_path / "nifti").mkdir()
    nibabel.save(nibabel.Nifti1Image(deep, np.diag([0.8, 0.8, 2.5, 1])), tmp_path / "nifti" / "a.nii")
    assert gigabytes({**large, "dataset_dir": str(tmp_path / "nifti")}) < gigabytes(flowing) + 0.5


def test_a_niftis_slices_are_counted_along_their_axis(options, tmp_path):
    image = nibabel.Nifti1Image(np.full((10, 32, 48), -1000, np.int16), np.diag([2.5, 0.8, 0.8, 1]))
    nibabel.save(image, tmp_path / "a.nii.gz")
    (one,) = make_plan(CONFIG, {**options, "dataset_dir": str(tmp_path), "output_dir": "elsewhere"})["series"]
    assert one["size"] == [32, 48, 10]


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
    per_voxel = {steps: time_of(options, steps) for steps in (1, 40)}
    assert per_voxel[40] > 2 * per_voxel[1]
    assert (one["steps"], many["steps"]) == (1, 40)


@pytest.mark.parametrize(
    ("settings", "trial", "rounds"),
    [
        ({"slices_at_once": 2}, ((64, 64, 8), 4, 1), 10 / 4),
        ({"slices_at_once": 2, "num_samples": 3}, ((64, 64, 8), 4, 1), 3 * 10 / 4),
        ({"slices_at_once": 0, "num_samples": 3}, ((128, 128, 8), 10, 3), 1),
    ],
)
def test_the_trial_goes_as_the_series_will_and_rounds_are_counted(options, monkeypatch, settings, trial, rounds):
    tried, clock = [], iter(range(100))  # each look at the clock is a second after the one before

    def pieces(self, volume, network, **_):
        tried.append((tuple(volume.shape), self.steps, self.num_samples))
        return iter(())

    monkeypatch.setattr(RestorationInferer, "pieces", pieces)
    monkeypatch.setattr(plan_module.time, "perf_counter", lambda: next(clock))
    found = time_of({**options, "tile_size": [64, 64, 8], **settings}, 10)
    assert set(tried) == {trial} and found == pytest.approx(rounds / np.prod(trial[0]))


@pytest.mark.parametrize(("seconds", "rounds"), [(1, 2), (11, 1)])
def test_a_trial_that_takes_long_is_not_repeated(options, monkeypatch, seconds, rounds):
    tried, clock = [], iter(range(0, 1000, seconds))
    monkeypatch.setattr(RestorationInferer, "pieces", lambda *_, **__: iter(tried.append(1) or ()))
    monkeypatch.setattr(plan_module.time, "perf_counter", lambda: next(clock))
    time_of(options, 1)
    assert len(tried) == rounds


def time_of(options, steps):
    """Seconds per voxel, not rounded as a plan's are."""
    parser = inference_parser(**{key: value for key, value in options.items() if key != "dataset_dir"}, steps=steps)
    parser.get_parsed_content("weights_digest")
    network = parser.get_parsed_content("engine").eval()
    return plan_module.seconds_per_voxel(network, parser.get_parsed_content("inferer"))


def test_the_estimate_is_of_all_voxels_that_are_computed(options, monkeypatch):
    monkeypatch.setattr(plan_module, "seconds_per_voxel", lambda *_: 1e-3)
    (one,) = make_plan(CONFIG, {**options, **IN_TILES})["series"]
    assert one["estimated_seconds"] == round(64 * 64 * 12 * 1e-3)  # three tiles of four slices
    (one,) = make_plan(CONFIG, {**options, **IN_TILES, "slices_at_once": 2})["series"]
    assert one["estimated_seconds"] == round(64 * 64 * 10 * 1e-3) and one["tiles"] == 1  # flowing, none twice


@pytest.mark.parametrize(("asked", "used"), [(1, 1), (0, 2)])
def test_the_trial_has_the_threads_that_were_asked_for(options, monkeypatch, asked, used):
    during, before = [], torch.get_num_threads()
    monkeypatch.setattr(plan_module, "seconds_per_voxel", lambda *_: during.append(torch.get_num_threads()) or 0.0)
    torch.set_num_threads(2)
    try:
        make_plan(CONFIG, {**options, "threads": asked})
    finally:
        torch.set_num_threads(before)
    assert during == [used]


def test_what_the_run_would_refuse(options):
    with pytest.raises(RuntimeError) as caught:  # MONAI wraps what a component raises; the command unwraps it
        make_plan(CONFIG, {**options, "steps": 0})
    assert "steps" in str(find_bundle_error(caught.value))
    with pytest.raises(BundleError, match="threads"):
        make_plan(CONFIG, {**options, "threads": -1})


def test_thin_slices_are_counted(options):
    thin = {**options, "task": "denoise", "slice_spacing_mm": 0.5}
    assert make_plan(CONFIG, thin)["series"][0]["size"] == [64, 64, 46]  # 9 x 2.5 mm and both ends
    plan = make_plan(CONFIG, {**thin, "slice_spacing_mm": 3.0})
    assert plan["series"] == [] and any("more than the 2.5 mm" in one["reason"] for one in plan["refused"])
