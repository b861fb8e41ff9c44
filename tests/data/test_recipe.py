import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.transforms import Compose

from bundle.data.recipe import describe
from bundle.data.transforms import NetworkSpacingd, NoiseRealisationsd, SlicesLastOrientationd
from bundle.degrade.low_dose import Scanner
from bundle.dicom.reader import LoadSeriesd


def chain(*, gaps="refuse", seed=0, scanner=None, pixdim=(-1.0, -1.0, -1.0), cutoffs=(0.9,), keys=("image",)):
    return Compose(
        [
            LoadSeriesd("image", gaps=gaps),
            NoiseRealisationsd(realisations=1, seed=seed, scanner=scanner, hann_cutoffs_per_mm=cutoffs),
            SlicesLastOrientationd(keys),
            NetworkSpacingd(keys, pixdim=pixdim),
        ]
    )


@pytest.mark.parametrize(
    "change",
    [
        {"gaps": "resample"},
        {"seed": 1},
        {"scanner": replace(Scanner(), views=360)},
        {"scanner": replace(Scanner(), bowtie_radius_mm=150.0)},
        {"pixdim": (1.0, 1.0, -1.0)},
        {"cutoffs": (1.2,)},
        {"keys": ("image", "poor")},
    ],
    ids=str,
)
def test_any_setting_is_noticed(change):
    assert describe(chain()) == describe(chain())
    assert describe(chain(**change)) != describe(chain())


def test_a_description_is_json_and_knows_no_address_and_no_state_of_randomness():
    text = json.dumps(describe(chain()))
    assert "0x" not in text
    drawn = chain()
    drawn.R.random()
    assert json.dumps(describe(drawn)) == text


def test_arrays_and_odd_values():
    assert describe({"a": np.arange(3), "b": torch.ones(2), 1: {2, 1}}) == {
        "a": [0, 1, 2],
        "b": [1, 1],
        "1": ["1", "2"],
    }
    assert describe(np.float32) == "numpy.float32"
