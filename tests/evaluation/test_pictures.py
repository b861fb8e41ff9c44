"""Pictures are whole PNG files of the right slices."""

import matplotlib.image
import numpy as np
from phantom_series import phantom_hu

from bundle.evaluation.pictures import save_bars, save_comparison, save_methods, save_spectra


def test_a_picture_has_a_panel_per_volume_and_the_difference(tmp_path):
    volume = phantom_hu(slices=3)
    path = tmp_path / "a.png"
    save_comparison(path, {"input": volume, "restored": volume, "target": volume}, title="series x")
    image = matplotlib.image.imread(path)
    assert image.shape[1] > 3 * image.shape[0] * 0.9
    last = image[image.shape[0] // 3 : -image.shape[0] // 3, -image.shape[1] // 5 : -image.shape[1] // 20, 0]
    assert np.ptp(last) < 0.05, "nothing was changed: the difference is flat"
    assert not list(tmp_path.glob(".*"))


def test_methods_stand_beside_the_target_above_what_they_got_wrong(tmp_path):
    volume = phantom_hu(slices=3)
    save_methods(tmp_path / "a.png", {"input": volume, "restored": volume}, volume, title="series x")
    soft_and_lung = matplotlib.image.imread(tmp_path / "a.png").shape
    air = np.full((32, 32, 2), -1000, np.float32)
    save_methods(tmp_path / "b.png", {"input": air}, air, title="air")
    assert soft_and_lung[0] > 2 * 350, "windows and differences, one under the other"
    assert (tmp_path / "b.png").stat().st_size > 1000


def test_bars_and_spectra(tmp_path):
    save_bars(tmp_path / "bars.png", {"a": {"input": 20.0, "ours": 10.0}, "b": {"input": 5.0}}, label="RMSE, HU")
    frequency = np.linspace(0.05, 0.7, 16)
    save_spectra(tmp_path / "noise.png", {"target": (frequency, 1 / frequency)}, title="series x")
    for name in ("bars.png", "noise.png"):
        assert matplotlib.image.imread(tmp_path / name).shape[0] >= 400
