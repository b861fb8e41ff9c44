import numpy as np
import pytest
import torch
from monai.engines import SupervisedEvaluator
from monai.inferers import Inferer
from torch.utils.data import DataLoader
from training_fixtures import prepare

from bundle.data.patches import SlabDataset
from bundle.data.splits import Part
from bundle.metrics.image import clip, psnr, ssim
from bundle.training.validation import LIMITS_HU, further_metrics, key_metric, prepare_slab

WINDOW = (0.0, 2000.0)  # centre and width of LIMITS_HU


class Smoothing(Inferer):
    """Stands for the restoration; remembers what it was told."""

    def __call__(self, inputs, network, **conditions):
        self.conditions = conditions
        return inputs + 0.5 * (inputs.mean(-1, keepdim=True) - inputs) + 3.0


@pytest.fixture(scope="module")
def slabs(tmp_path_factory):
    cases = prepare(tmp_path_factory.mktemp("cases"), ["a", "b", "c"], size=48)
    return SlabDataset([Part.whole(case) for case in cases], num_slices=5, dose=0.2)


@pytest.fixture(scope="module")
def evaluated(slabs):
    inferer = Smoothing()
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(slabs, batch_size=1),
        network=torch.nn.Identity(),
        prepare_batch=prepare_slab,
        inferer=inferer,
        key_val_metric=key_metric(),
        additional_metrics=further_metrics(),
    )
    evaluator.run()
    return evaluator, inferer


def expected(slabs, metric, restored):
    values = []
    for index in range(len(slabs)):
        item = slabs[index]
        image = Smoothing()(item["image"], None) if restored else item["image"]
        pair = [clip(volume[0].numpy(), WINDOW) for volume in (image, item["label"])]
        values.append(metric(*pair, data_range=2000.0))
    return np.mean(values)


def test_limits_are_the_window():
    assert clip(np.array([-1e9, 1e9]), WINDOW).tolist() == list(LIMITS_HU)


@pytest.mark.parametrize(
    "name,metric,restored",
    [
        ("val_psnr_1000", psnr, True),
        ("val_psnr_1000_input", psnr, False),
        ("val_ssim_1000", ssim, True),
        ("val_ssim_1000_input", ssim, False),
    ],
)
def test_metrics_are_those_of_the_evaluation(slabs, evaluated, name, metric, restored):
    tolerance = {"rel": 1e-4} if metric is psnr else {"abs": 2e-4}  # MONAI's is float32
    assert evaluated[0].state.metrics[name] == pytest.approx(expected(slabs, metric, restored), **tolerance)


def test_nothing_else_is_measured_and_psnr_picks_the_best(evaluated):
    state = evaluated[0].state
    assert set(state.metrics) == {"val_psnr_1000", "val_psnr_1000_input", "val_ssim_1000", "val_ssim_1000_input"}
    assert state.key_metric_name == "val_psnr_1000" and state.best_metric == state.metrics["val_psnr_1000"]


def test_conditions_reach_the_inferer(slabs, evaluated):
    conditions = evaluated[1].conditions
    assert torch.equal(conditions["noise_level"][0], slabs[2]["noise_level"])
    assert torch.equal(conditions["spacing_mm"][0], slabs[2]["spacing_mm"])
