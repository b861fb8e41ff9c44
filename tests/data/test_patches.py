import itertools

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from training_fixtures import PairTransform, prepare

from bundle.data.levels import NoiseLevels
from bundle.data.patches import PatchDataset, SlabDataset
from bundle.data.prepared import prepare_cases
from bundle.data.samplers import ResumableBatchSampler
from bundle.data.sources import Case
from bundle.data.splits import Part
from bundle.degrade.composition import DegradationSampling, LowDose, apply_steps
from bundle.degrade.low_dose import apply_dose
from bundle.errors import BundleError

PATCH, SLICES = 16, 4


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("cases"), ["a", "b"])


def dataset(cases, **settings):
    parts = [Part.whole(case) for case in cases]
    return PatchDataset(parts, **{"patch_size": PATCH, "num_slices": SLICES, "length": 12, "seed": 3, **settings})


def level(case, dose, region):
    return NoiseLevels()(case, (LowDose(dose=dose),), region)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def place(case, label):
    """First voxel of a patch in its case; the phantom's noise makes it unique, or None."""
    windows = np.lib.stride_tricks.sliding_window_view(case.image_hu, label.shape)
    for corner in np.argwhere(windows[..., 0, 0, 0] == label[0, 0, 0]):
        if np.array_equal(windows[tuple(corner)], label):
            return tuple(int(c) for c in corner)
    return None


def test_shapes_and_types(cases):
    item = dataset(cases)[0]
    assert item["image"].shape == item["label"].shape == (1, PATCH, PATCH, SLICES)
    assert item["spacing_mm"].tolist() == pytest.approx([0.8, 0.8, 2.5]) and item["noise_level"].shape == (SLICES,)
    assert all(value.dtype == torch.float32 and torch.isfinite(value).all() for value in item.values())


def test_an_item_is_a_function_of_seed_epoch_and_index(cases):
    positions = [(epoch, index) for epoch in range(2) for index in range(6)]
    one, other = dataset(cases), dataset(cases, length=99)
    first = {position: one[position] for position in positions}
    np.random.seed(7)
    torch.manual_seed(7)
    for position in reversed(positions):
        assert same(other[position], first[position])
    for a, b in itertools.combinations(positions, 2):
        assert not same(first[a], first[b])
    assert not same(dataset(cases, seed=4)[(0, 0)], first[(0, 0)])
    assert same(one[3], one[(0, 3)])


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_gives_the_same_items_whatever_the_workers(cases, workers):
    data = dataset(cases)
    sampler = ResumableBatchSampler(len(data), batch_size=3)
    sampler.epoch, sampler.skip = 5, 1
    batches = list(DataLoader(data, batch_sampler=sampler, num_workers=workers, generator=torch.Generator()))
    assert len(batches) == 3
    for number, batch in enumerate(batches, start=1):
        for row in range(3):
            direct = data[(5, 3 * number + row)]
            assert same({key: value[row] for key, value in batch.items()}, direct)


def test_clean_patches_are_their_own_label(cases):
    data = dataset(cases, degradation=DegradationSampling(clean_fraction=1.0))
    for index in range(8):
        assert torch.equal(data[index]["image"], data[index]["label"])
    noisy = dataset(cases, degradation=DegradationSampling(clean_fraction=0.0, dose_range=(0.1, 0.5)))
    assert not any(torch.equal(noisy[index]["image"], noisy[index]["label"]) for index in range(8))


def test_noise_and_noise_level_are_those_of_the_place(cases):
    data = dataset(cases, augment=False, degradation=DegradationSampling(clean_fraction=0.0, dose_range=(0.25, 0.25)))
    for index in range(10):
        item = data[index]
        label = item["label"][0].numpy()
        found = [(case, corner) for case in cases if (corner := place(case, label)) is not None]
        assert len(found) == 1
        case, corner = found[0]
        region = tuple(slice(c, c + n) for c, n in zip(corner, (PATCH, PATCH, SLICES), strict=True))
        assert np.array_equal(item["noise_level"], level(case, 0.25, region[2]))
        candidates = [
            apply_dose(label, *(sign * noise[region].astype(np.float32) for noise in case.noise(number)), dose=0.25)
            for number in range(case.realisations)
            for sign in (-1, 1)
        ]
        assert any(np.array_equal(candidate, item["image"][0]) for candidate in candidates)


def test_dose_stays_in_its_range(cases):
    part = cases[:1]
    data = dataset(part, degradation=DegradationSampling(clean_fraction=0.0, dose_range=(0.3, 0.6)), length=64)
    least, most = (level(cases[0], dose, slice(0, 12)) for dose in (0.6, 0.3))
    for index in range(64):
        levels = data[index]["noise_level"].numpy()
        assert least.min() <= levels.min() and levels.max() <= most.max()


def test_flips_move_image_label_and_noise_level_together(cases):
    settings = {"degradation": DegradationSampling(clean_fraction=0.0, dose_range=(0.2, 0.2))}
    plain, turned = dataset(cases, augment=False, **settings), dataset(cases, **settings)
    seen = set()
    for index in range(160):
        before, after = plain[index], turned[index]
        for flips in itertools.product((False, True), repeat=3):
            for transpose in (False, True):
                axes = [axis + 1 for axis in range(3) if flips[axis]]

                def turn(volume, axes=axes, transpose=transpose):
                    volume = volume.flip(axes)
                    return volume.transpose(1, 2) if transpose else volume

                if torch.equal(turn(before["label"]), after["label"]):
                    seen.add((flips, transpose))
                    assert torch.equal(turn(before["image"]), after["image"])
                    levels = before["noise_level"].flip(0) if flips[2] else before["noise_level"]
                    assert torch.equal(levels, after["noise_level"])
                    break
            else:
                continue
            break
        else:
            raise AssertionError(f"item {index} is no flip or transpose of itself")
    assert len(seen) == 16


def test_patches_stay_in_their_part(cases):
    data = PatchDataset([Part(cases[0], 3, 9)], patch_size=PATCH, num_slices=SLICES, length=40, seed=0, augment=False)
    corners = [place(cases[0], data[index]["label"][0].numpy()) for index in range(40)]
    assert {corner[2] for corner in corners} == {3, 4, 5}


def test_body_is_favoured_over_air(cases):
    def body(patches):
        return np.mean([np.mean(patch[::4, ::4] > -500) >= 0.3 for patch in patches])

    everywhere = np.lib.stride_tricks.sliding_window_view(cases[0].image_hu, (PATCH, PATCH, SLICES))
    uniform = body(everywhere[::4, ::4, ::4].reshape(-1, PATCH, PATCH, SLICES))
    data = dataset(cases[:1], augment=False)
    chosen = body([data[index]["label"][0].numpy() for index in range(100)])
    assert uniform < 0.8 < 0.95 < chosen


@pytest.mark.parametrize("settings", [{"patch_size": 65}, {"num_slices": 13}])
def test_too_small_series_are_refused(cases, settings):
    with pytest.raises(BundleError, match="no series is as large as a patch"):
        dataset(cases, **settings)


def test_small_series_are_left_out_beside_large_ones(cases):
    parts = [Part(cases[0], 0, 3), Part.whole(cases[1])]
    data = PatchDataset(parts, patch_size=PATCH, num_slices=SLICES, length=4, seed=0)
    assert [part.case.key for part in data.parts] == [cases[1].key]


def test_slab_is_the_middle_of_its_part(cases):
    slabs = SlabDataset([Part(cases[0], 2, 11), Part.whole(cases[1])], num_slices=5, dose=0.25)
    assert len(slabs) == 2
    item = slabs[0]
    assert np.array_equal(item["label"][0], cases[0].image_hu[:, :, 4:9])
    assert np.array_equal(item["noise_level"], level(cases[0], 0.25, slice(4, 9)))
    noises = [noise[:, :, 4:9].astype(np.float32) for noise in cases[0].noise(0)]
    assert np.array_equal(item["image"][0], apply_dose(item["label"][0].numpy(), *noises, dose=0.25))
    assert same(slabs[0], item)


def test_slab_of_a_short_or_wide_part(cases):
    assert SlabDataset([Part(cases[0], 9, 12)], num_slices=8)[0]["image"].shape == (1, 64, 64, 3)
    assert SlabDataset([Part(cases[0], 0, 12)], num_slices=8, size=20)[0]["image"].shape == (1, 20, 20, 8)


THICK = DegradationSampling(degradation="thick_slices", clean_fraction=0.0, slice_thickness_mm=[7.5])
COMPOSED = DegradationSampling(
    degradation=["low_dose", "kernel", "thick_slices"], clean_fraction=0.0, slice_thickness_mm=[7.5], mtf50_per_mm=[0.4]
)


@pytest.mark.parametrize("sampling", [THICK, COMPOSED], ids=["thick", "composed"])
def test_a_patch_is_a_part_of_the_degraded_series(cases, sampling):
    """Whatever lies around a patch takes part: slabs and blur do not end at its edge."""
    data = dataset(cases, augment=False, degradation=sampling)
    for index in range(6):
        item, drawn = data[index], data._drawn(index)
        case = drawn.part.case
        whole = apply_steps(case.image_hu, drawn.steps, spacing_mm=case.spacing_mm, noise=case.noise)
        np.testing.assert_allclose(item["image"][0], whole[drawn.region], atol=2e-3)
        assert np.array_equal(item["label"][0], case.image_hu[drawn.region])
        assert not torch.allclose(item["image"], item["label"], atol=1.0)


def test_metadata_say_what_an_item_is_made_of(cases):
    data = dataset(cases, degradation=COMPOSED)
    told = data.metadata((2, 5))
    assert told == dataset(cases, degradation=COMPOSED).metadata((2, 5)) != data.metadata((2, 6))
    assert told["series"] == data.series_key((2, 5))
    assert [step["kind"] for step in told["degradation"]] == ["low_dose", "kernel", "thick_slices"]
    case = next(case for case in cases if case.key == told["series"])
    region = tuple(slice(a, b) for a, b in zip(told["start"], told["stop"], strict=True))
    plain = dataset(cases, degradation=COMPOSED, augment=False)[(2, 5)]
    assert np.array_equal(plain["label"][0], case.image_hu[region])


def test_thick_slices_need_thin_ones(cases):
    with pytest.raises(BundleError, match="no series has slices thin enough to make slices of 3 mm"):
        dataset(cases, degradation=DegradationSampling(degradation="thick_slices", slice_thickness_mm=[3.0]))


def test_validation_slabs_are_thickened_alike(cases):
    slabs = SlabDataset([Part.whole(cases[0])], num_slices=6, degradation=THICK)
    expected = THICK.fixed(0.25)[0].apply(cases[0].image_hu, step_mm=2.5)[:, :, 3:9]
    np.testing.assert_allclose(slabs[0]["image"][0], expected, atol=1e-3)


def test_a_pair_is_cut_at_the_same_place_and_nothing_is_simulated(tmp_path):
    for name in ("a", "partner"):
        (tmp_path / name).write_text(name)
    pair = Case(
        key="k", patient_key="p", files=(str(tmp_path / "a"),), label="", poor_files=(str(tmp_path / "partner"),)
    )
    (case,), _ = prepare_cases(
        [pair], transform=PairTransform(), cache_dir=tmp_path / "cache", recipe={}, realisations=2
    )
    data = dataset([case])
    for index in range(5):
        assert torch.equal(data[index]["image"], data[index]["label"] - 7)
        assert np.isin(data[index]["noise_level"].numpy(), np.array(case.poor_noise_hu, np.float32)).all()
        assert data.metadata(index)["degradation"] == "pair"
    assert torch.equal(
        *(SlabDataset([Part.whole(case)], num_slices=4)[0][key] + n for key, n in (("image", 7), ("label", 0)))
    )
