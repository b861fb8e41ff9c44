import torch

from bundle.restoration.mirrors import COUNTS, FLIPS, mirrored

X = torch.randn(2, 1, 6, 5, 3, generator=torch.Generator().manual_seed(0))


def mean_over(flips, restore):
    return sum(mirrored(restore, X, axes) for axes in FLIPS[:flips]) / flips


def test_of_what_knows_no_sides_nothing_changes():
    for axes in FLIPS:
        assert torch.equal(mirrored(lambda x: 2 * x + 1, X, axes), 2 * X + 1)


def test_the_first_is_the_function_itself():
    assert torch.equal(mirrored(lambda x: x.roll(1, 3), X, FLIPS[0]), X.roll(1, 3))


def test_what_leans_to_one_side_is_balanced():
    lean = torch.zeros_like(X)
    lean[:, :, 0], lean[:, :, :, 0] = 1.0, 4.0
    for flips, axes in ((2, (3,)), (4, (2,)), (4, (3,)), (4, (2, 3))):
        found = mean_over(flips, lambda x: lean)
        torch.testing.assert_close(found, found.flip(axes))
        torch.testing.assert_close(found.sum(), lean.sum())


def test_every_image_is_seen_once_and_slices_keep_their_order():
    seen = []
    mean_over(max(COUNTS), lambda x: seen.append(x.clone()) or x)
    images = [X, X.flip(3), X.flip(2), X.flip(2, 3)]
    assert all(torch.equal(a, b) for a, b in zip(seen, images, strict=True))
