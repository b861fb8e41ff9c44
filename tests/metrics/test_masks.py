import numpy as np

from bundle.metrics.masks import TISSUES_HU, body_mask, tissue_masks

SIZE = 160


def phantom(*, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """A chest of ellipses on a hollow table, (160, 160, 4), and the truth of its body."""
    rows, columns = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2

    def ellipse(row: float, column: float, a: float, b: float) -> np.ndarray:
        return ((rows - row) / a) ** 2 + ((columns - column) / b) ** 2 < 1

    body = ellipse(0, 0, 45, 65)
    hu = np.where(body, -100.0, -1000.0)
    hu[ellipse(0, 0, 38, 58)] = 50
    hu[ellipse(-5, -28, 22, 18) | ellipse(-5, 28, 22, 18)] = -800
    hu[ellipse(25, 0, 8, 10)] = 600
    table = (rows >= 44) & (rows < 62)
    hu[table] = -900
    hu[(table & ((rows < 46) | (rows > 60)))] = np.maximum(hu[(table & ((rows < 46) | (rows > 60)))], -100)
    hu[body & table] = -100
    volume = np.repeat(hu[:, :, None], 4, axis=2)
    volume += noise * np.random.default_rng(0).standard_normal(volume.shape)
    return volume.astype(np.float32), np.repeat(body[:, :, None], 4, axis=2)


def test_body_is_the_patient_without_table_and_with_lungs():
    volume, truth = phantom(noise=20)
    mask = body_mask(volume)
    assert mask.dtype == bool
    assert mask.shape == volume.shape
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.98
    assert not mask[64 + 80 :].any()


def test_a_body_cut_by_the_field_of_view_reaches_the_edge():
    volume = np.full((64, 64, 2), 40, np.float32)
    assert body_mask(volume).all()


def test_nothing_but_air_has_no_body():
    volume = np.full((64, 64, 2), -1000, np.float32)
    assert not body_mask(volume).any()
    masks = tissue_masks(volume)
    assert masks["air"].all()
    assert not any(masks[name].any() for name in masks if name != "air")


def test_tissues_are_disjoint_pure_and_inside():
    clean, body = phantom()
    noisy, _ = phantom(noise=25)
    masks = tissue_masks(noisy)
    assert list(masks) == list(TISSUES_HU) == ["air", "gas", "lung", "fat", "soft", "bone"]
    assert not masks["gas"].any(), "this phantom has none"
    assert sum(mask.astype(int) for mask in masks.values()).max() == 1
    for name, value in {"air": -1000, "lung": -800, "fat": -100, "soft": 50, "bone": 600}.items():
        assert masks[name].sum() > 40, name
        assert (clean[masks[name]] == value).mean() > 0.98, name
        assert not (masks[name] & (body if name == "air" else ~body)).any()


def test_gas_is_the_air_inside():
    noisy, body = phantom(noise=25)
    rows, columns, slices = (int(np.median(places)) for places in np.nonzero(body))
    inside = (slice(rows - 8, rows + 8), slice(columns - 8, columns + 8))
    noisy[inside] = -1000 + np.random.default_rng(3).normal(0, 25, noisy[inside].shape)
    masks = tissue_masks(noisy)
    assert masks["gas"][rows, columns, slices] and not masks["air"][inside].any()
    outside = masks["gas"].copy()
    outside[inside] = False
    assert masks["gas"].sum() > 40 and not outside.any()


def test_masks_do_not_choose_noise():
    """The mean of noisy values over a class is that of the clean ones: the class was read from a smoothed copy."""
    clean, _ = phantom()
    noisy, _ = phantom(noise=25)
    soft = tissue_masks(noisy)["soft"]
    assert abs((noisy - clean)[soft].mean()) < 0.5
