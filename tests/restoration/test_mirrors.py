import pytest
import torch

from bundle.restoration.mirrors import COUNTS, mean_over_flips

X = torch.randn(2, 1, 6, 5, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("flips", COUNTS)
def test_of_what_knows_no_sides_nothing_changes(flips):
    torch.testing.assert_close(mean_over_flips(lambda x: 2 * x + 1, X, flips=flips), 2 * X + 1)


def test_one_is_the_function_itself():
    assert torch.equal(mean_over_flips(lambda x: x.roll(1, 3), X, flips=1), X.roll(1, 3))


def test_what_leans_to_one_side_is_balanced():
    lean = torch.zeros_like(X)
    lean[:, :, 0], lean[:, :, :, 0] = 1.0, 4.0
    once = mean_over_flips(lambda x: lean, X, flips=1)
    for flips, axes in ((2, (3,)), (4, (2,)), (4, (3,)), (4, (2, 3))):
        found = mean_over_flips(lambda x: lean, X, flips=flips)
        torch.testing.assert_close(found, found.flip(axes))
        assert found.sum() == pytest.approx(float(once.sum()))


def test_every_image_is_seen_once_and_slices_keep_their_order():
    seen = []
    mean_over_flips(lambda x: seen.append(x.clone()) or x, X, flips=4)
    images = [X, X.flip(3), X.flip(2), X.flip(2, 3)]
    assert all(torch.equal(a, b) for a, b in zip(seen, images, strict=True))
