import pytest

from bundle.data.averaging import SlabSampling
from bundle.data.choices import require_choice
from bundle.data.contrast import ContrastSampling
from bundle.data.pixel_size import PixelSizeSampling
from bundle.data.reconstruction import ReconstructionSampling


def test_what_can_be_drawn_with_passes():
    require_choice(probability=0, other=1.0, factors=(0.5, 2))


@pytest.mark.parametrize(
    "refused",
    [
        lambda: SlabSampling(probability=1.5),
        lambda: ContrastSampling(probability=-0.1),
        lambda: PixelSizeSampling(probability=float("nan")),
        lambda: ReconstructionSampling(smooth_probability=2),
    ],
)
def test_every_sampling_refuses_what_is_no_probability(refused):
    with pytest.raises(ValueError, match="probability must be between 0 and 1"):
        refused()


@pytest.mark.parametrize("sequence", [(), (0.5, 0.0), (-1.0,)])
def test_nothing_to_choose_from_is_refused(sequence):
    with pytest.raises(ValueError, match="factors must be above 0, and there must be one"):
        require_choice(factors=sequence)
