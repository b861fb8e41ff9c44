"""Pictures are whole PNG files of the right slices."""

import matplotlib.image
import numpy as np
from phantom_series import phantom_hu

from bundle.evaluation.pictures import save_comparison


def test_a_picture_has_a_panel_per_volume_and_the_difference(tmp_path):
    volume = phantom_hu(slices=3)
    path = tmp_path / "a.png"
    save_comparison(path, {"input": volume, "restored": volume, "target": volume}, title="series x")
    image = matplotlib.image.imread(path)
    assert image.shape[1] > 3 * image.shape[0] * 0.9
    last = image[image.shape[0] // 3 : -image.shape[0] // 3, -image.shape[1] // 5 : -image.shape[1] // 20, 0]
    assert np.ptp(last) < 0.05, "nothing was changed: the difference is flat"
    assert not list(tmp_path.glob(".*"))
