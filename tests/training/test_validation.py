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
from bundle.training.validation import COMPARED, LIMITS_HU, Ceiling, further_metrics, key_metric, prepare_slab

WINDOW = (0.0, 2000.0)  # centre and width of LIMITS_HU


class Smoothing(Inferer):
    """Stands for the restoration; remembers what it was told."""

    def __call__(self, inputs, network, **conditions):
        self.conditions = conditions
        return inputs + 0.5 * (inputs.mean(-1, keepdim=True) - inputs) + 3.0

    def reconstruct(self, inputs, network):
        return inputs + 7.0


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
        key_val_metric=key_metric(len(slabs)),
        additional_metrics=further_metrics(len(slabs)),
        val_handlers=[Ceiling(inferer)],
    )
    evaluator.run()
    return evaluator, inferer


def rmse(image, label, *, data_range):
    return float(np.sqrt(np.mean((image.astype(np.float64) - label) ** 2)))


def compared(item, kind):
    if kind == "_input":
        return item["image"]
    return Smoothing().reconstruct(item["label"], None) if kind else Smoothing()(item["image"], None)


def expected(slabs, metric, kind):
    values = []
    for index in range(len(slabs)):
        item = slabs[index]
        pair = [clip(volume[0].numpy(), WINDOW) for volume in (compared(item, kind), item["label"])]
        values.append(metric(*pair, data_range=2000.0))
    return np.mean(values)


def test_limits_are_the_window():
    assert clip(np.array([-1e9, 1e9]), WINDOW).tolist() == list(LIMITS_HU)


@pytest.mark.parametrize("kind", COMPARED)
@pytest.mark.parametrize("name,metric", [("val_psnr_1000", psnr), ("val_ssim_1000", ssim), ("val_rmse_1000_hu", rmse)])
def test_metrics_are_those_of_the_evaluation(slabs, evaluated, name, metric, kind):
    tolerance = {"abs": 2e-4} if metric is ssim else {"rel": 1e-4}  # MONAI's are float32
    found = evaluated[0].state.metrics[name + kind]
    assert found == pytest.approx(expected(slabs, metric, kind), **tolerance)


def test_nothing_else_is_measured_and_psnr_picks_the_best(evaluated):
    state = evaluated[0].state
    assert len(state.metrics) == 9
    assert state.key_metric_name == "val_psnr_1000" and state.best_metric == state.metrics["val_psnr_1000"]


def test_conditions_reach_the_inferer(slabs, evaluated):
    conditions = evaluated[1].conditions
    assert torch.equal(conditions["noise_level"][0], slabs[2]["noise_level"])
    assert torch.equal(conditions["spacing_mm"][0], slabs[2]["spacing_mm"])


def test_a_metric_without_slabs_says_so():
    with pytest.raises(RuntimeError, match="no slabs"):
        key_metric(0)["val_psnr_1000"].compute()
