import itertools

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd

from bundle.data.transforms import (
    NetworkSpacingd,
    NoiseRealisationsd,
    SlicesLastOrientationd,
    axis_codes,
    noise_keys,
)
from bundle.degrade.low_dose import Scanner

SPACING = np.array([0.7, 0.8, 2.5])
PLANES = {"axial": [0, 1, 2], "coronal": [0, 2, 1], "sagittal": [1, 2, 0]}  # world axis of each voxel axis


def affine_of(directions):
    affine = np.eye(4)
    affine[:3, :3] = directions * SPACING
    affine[:3, 3] = (-101.5, 33.25, 740.0)
    return affine


def planes():
    for name, axes in PLANES.items():
        for swap in (False, True):
            order = [axes[1], axes[0], axes[2]] if swap else axes
            for signs in itertools.product((-1, 1), repeat=3):
                yield name, affine_of(np.eye(3)[:, order] * signs)


# Near 45 degrees about two axes: the slice axis is nearest to a world axis that belongs to another voxel axis.
TWISTED = np.array([[-0.2525, 0.8747, -0.4138], [-0.6475, -0.4705, -0.5994], [0.7190, -0.1166, -0.6852]])


def rotations(number=60):
    """Any orientation."""
    yield "oblique", affine_of(TWISTED)
    rng = np.random.default_rng(5)
    for _ in range(number):
        q, r = np.linalg.qr(rng.normal(size=(3, 3)))
        yield "oblique", affine_of(q * np.sign(np.diag(r)))


ALL = [*planes(), *rotations()]


def image(affine):
    return MetaTensor(torch.arange(3.0 * 4 * 5).reshape(1, 3, 4, 5), affine=torch.from_numpy(affine))


def positions(volume):
    """World position of each value, in the order of the values."""
    values = volume.as_tensor().flatten().long()
    grid = torch.stack(torch.meshgrid(*(torch.arange(n) for n in volume.shape[1:]), indexing="ij"), -1).reshape(-1, 3)
    world = grid.double() @ volume.affine[:3, :3].T.double() + volume.affine[:3, 3].double()
    return world[torch.argsort(values)]


@pytest.mark.parametrize("affine", [a for _, a in ALL])
def test_slices_stay_last_and_nothing_moves_in_space(affine):
    before = image(affine)
    after = SlicesLastOrientationd("image")({"image": before})["image"]
    assert after.shape[3] == 5 and set(after.shape[1:3]) == {3, 4}
    assert torch.allclose(positions(after), positions(before), atol=1e-9)
    along = torch.nn.functional.cosine_similarity(after.affine[:3, 2], before.affine[:3, 2], dim=0)
    assert abs(float(along)) == pytest.approx(1)


@pytest.mark.parametrize("affine", [a for _, a in ALL])
def test_inverse_is_exact(affine):
    before = image(affine)
    orient = SlicesLastOrientationd("image")
    back = orient.inverse(orient({"image": before.clone()}))["image"]
    assert torch.equal(back.as_tensor(), before.as_tensor())
    assert torch.allclose(back.affine, before.affine, atol=1e-12)
    assert not back.applied_operations


@pytest.mark.parametrize("name,code", [("axial", "LPS"), ("coronal", "LSP"), ("sagittal", "PSL")])
def test_standard_orientation(name, code):
    for plane, affine in planes():
        if plane == name:
            assert axis_codes(affine) == code
            after = SlicesLastOrientationd("image")({"image": image(affine)})["image"]
            assert axis_codes(after.affine) == code
            again = SlicesLastOrientationd("image")({"image": after})["image"]
            assert torch.equal(again.as_tensor(), after.as_tensor())


def test_keys_of_different_orientation_invert_each():
    affines = {"a": affine_of(np.eye(3)), "b": affine_of(np.eye(3)[:, [0, 2, 1]]), "c": affine_of(-np.eye(3))}
    before = {key: image(affine) for key, affine in affines.items()}
    orient = SlicesLastOrientationd(["a", "b", "c"])
    back = orient.inverse(orient({key: value.clone() for key, value in before.items()}))
    for key in before:
        assert torch.equal(back[key].as_tensor(), before[key].as_tensor())


@pytest.mark.parametrize("affine", [affine_of(np.eye(3)[:, [1, 2, 0]] * (1, -1, 1)), affine_of(TWISTED)])
def test_monai_invertd_brings_a_prediction_back(affine):
    """As inference does: the prediction has the oriented image's grid and is put back onto the input's."""
    chain = Compose([SlicesLastOrientationd("image")])
    before = image(affine)
    oriented = chain({"image": before.clone()})
    prediction = MetaTensor(oriented["image"].as_tensor() + 100, meta=oriented["image"].meta)
    invert = Invertd("pred", transform=chain, orig_keys="image", nearest_interp=False, to_tensor=True)
    back = invert({"image": oriented["image"], "pred": prediction})["pred"]
    assert torch.equal(torch.as_tensor(back), before.as_tensor() + 100)


def test_missing_keys():
    with pytest.raises(KeyError):
        SlicesLastOrientationd("other")({"image": image(np.eye(4))})
    assert "other" not in SlicesLastOrientationd("other", allow_missing_keys=True)({"image": image(np.eye(4))})


@pytest.fixture(scope="module")
def phantom():
    rng = np.random.default_rng(0)
    hu = np.where(rng.random((1, 32, 32, 2)) > 0.3, 0.0, -200.0).astype(np.float32)
    hu[:, :6] = -1000
    return MetaTensor(torch.from_numpy(hu), affine=torch.diag(torch.tensor([1.0, 1.0, 3.0, 1.0])))


def test_noise_realisations_add_their_keys(phantom):
    add = NoiseRealisationsd("image", realisations=2, seed=5, scanner=Scanner(views=48))
    result = add({"image": phantom, "other": 1})
    assert noise_keys(2) == ["quantum_0", "electronic_0", "quantum_1", "electronic_1"]
    assert set(result) == {"image", "other", *noise_keys(2)}
    assert result["image"] is phantom
    for key in noise_keys(2):
        assert result[key].shape == phantom.shape and torch.equal(result[key].affine, phantom.affine)
        assert float(result[key].float().std()) > 0
    assert not torch.equal(result["quantum_0"].as_tensor(), result["quantum_1"].as_tensor())
    again = add({"image": phantom})
    assert all(torch.equal(again[key].as_tensor(), result[key].as_tensor()) for key in noise_keys(2))
    other = NoiseRealisationsd("image", realisations=1, seed=6, scanner=Scanner(views=48))({"image": phantom})
    assert torch.equal(other["quantum_0"].as_tensor(), result["quantum_1"].as_tensor())  # seeds follow each other


def tilted(degrees=15.0):
    """RAS affine of a gantry tilted about the patient's left-right axis: rows of slices step straight along z."""
    angle = np.radians(degrees)
    affine = np.eye(4)
    affine[:3, 0] = [0.8, 0, 0]
    affine[:3, 1] = [0, 0.8 * np.cos(angle), 0.8 * np.sin(angle)]
    affine[:3, 2] = [0, 0, 2.5]
    affine[:3, 3] = [-20, -30, 100]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def chain(pixdim):
    return Compose([SlicesLastOrientationd(keys="image"), NetworkSpacingd(keys="image", pixdim=pixdim)])


@pytest.mark.parametrize("degrees", [15.0, -20.0])
def test_the_native_grid_is_left_alone_though_sheared(degrees):
    affine = tilted(degrees)
    image = MetaTensor(torch.rand(1, 20, 24, 6), affine=affine)
    there = chain([-1.0, -1.0, -1.0])({"image": image})["image"]
    assert torch.equal(there.as_tensor(), image.as_tensor())
    np.testing.assert_allclose(there.affine, affine)


@pytest.mark.parametrize("pixdim", [(-1.0, -1.0, -1.0), (1.6, 1.6, -1.0), (0.8, 0.8, 5.0), (1.2, 1.2, 2.0)])
def test_a_difference_comes_back_to_its_place_from_an_orthogonal_grid(pixdim):
    affine, transform = tilted(), chain(pixdim)
    there = transform({"image": MetaTensor(torch.zeros(1, 40, 44, 12), affine=affine)})["image"]
    columns = np.asarray(there.affine)[:3, :3]
    gram = columns.T @ columns
    if pixdim[0] > 0:
        np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=1e-6)
    centre = (affine @ [20, 22, 6, 1])[:3] + np.array([0.3, -0.2, 0.7])
    difference = MetaTensor(
        torch.from_numpy(blob(np.asarray(there.affine), there.shape[1:], centre))[None],
        meta=there.meta,
        applied_operations=there.applied_operations,
    )
    back = Invertd(keys="difference", transform=transform, orig_keys="image", nearest_interp=False)
    result = back({"image": there, "difference": difference})["difference"]
    np.testing.assert_allclose(result.affine, affine, atol=1e-5)
    assert result.shape == (1, 40, 44, 12)
    weights = np.asarray(result[0])
    wanted = blob(affine, weights.shape, centre)
    found = np.einsum("xhwd,hwd->x", world(affine, weights.shape), weights) / weights.sum()
    assert np.abs(found - centre).max() < 0.05, "mm"
    assert np.corrcoef(weights.ravel(), wanted.ravel())[0, 1] > 0.97


def world(affine, shape):
    """Places of voxels, mm, (3, H, W, D)."""
    grid = np.stack([*np.meshgrid(*map(np.arange, shape), indexing="ij"), np.ones(shape)])
    return np.einsum("xy,yhwd->xhwd", affine, grid)[:3]


def blob(affine, shape, centre):
    """A difference around a point, 2.5 mm wide."""
    return np.exp(-((world(affine, shape) - np.reshape(centre, (3, 1, 1, 1))) ** 2).sum(0) / (2 * 2.5**2))
