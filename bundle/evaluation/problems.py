"""From loaded items to problems, with real partners where there are some, and what does not match named."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.data import MetaTensor

from bundle.data.sources import Case, Source
from bundle.degrade.transforms import DEGRADATION_KEY
from bundle.dicom.geometry import grid_spacing_mm
from bundle.errors import BundleError
from bundle.evaluation.methods import Problem
from bundle.restoration.worklist import SeriesDataset

# Positions of two series of one scan differ by their rounding, and that of a pixel's size adds up from the first voxel
# to the last: half a millimetre over 512 pixels is a thousandth for each.
_FIRST_VOXEL_MM = 0.05
_CORNERS_MM = 0.5


class PairedSeriesDataset(SeriesDataset):
    """Targets with their real poor partners; an item is as SeriesDataset's, its transform gets both lists of files.

    Args:
        data: targets.
        transform: MONAI chain from {'image': files of the poor series, 'label': files of the target}.
        partners: poor series by the target's key; a target without one is a failure of its own.
    """

    def __init__(
        self,
        data: Source,
        transform: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        *,
        partners: Mapping[str, Case],
    ) -> None:
        super().__init__(data.cases, transform)
        self.partners = partners

    def load(self, case: Case) -> Mapping[str, Any]:
        """Return the transformed data of a target and its partner.

        Raises:
            BundleError: when it has none.
        """
        partner = self.partners.get(case.key)
        if partner is None:
            raise BundleError("the target has no degraded partner", hint="give both the same folder name")
        return self.transform({"image": list(partner.files), "label": list(case.files)})


def find_partners(targets: Source, degraded: Source) -> dict[str, Case]:
    """Find the poor series of each target: in a folder of the same name, else the only one of the same patient."""
    partners: dict[str, Case] = {}
    for target in targets.cases:
        same_folder = [case for case in degraded.cases if case.label == target.label]
        same_patient = [case for case in degraded.cases if case.patient_key == target.patient_key]
        for found in (same_folder, same_patient):
            if len(found) == 1:
                partners[target.key] = found[0]
                break
    return partners


def make_problem(item: Mapping[str, Any]) -> Problem:
    """Return the problem of a loaded item of a SeriesDataset, 'image' poor and 'label' the target.

    Raises:
        BundleError: that the two do not match; an item's own failure is raised as it is.
    """
    if "failure" in item:
        raise item["failure"]
    data = item["data"]
    image, label = data["image"], data["label"]
    _require_match(image, label)
    spacing = grid_spacing_mm(np.asarray(label.affine))
    return Problem(
        key=item["case"].key,
        degraded_hu=_volume(image),
        target_hu=_volume(label),
        spacing_mm=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
        degradation=image.meta.get(DEGRADATION_KEY, ()),
    )


def _require_match(image: MetaTensor, label: MetaTensor) -> None:
    if image.shape != label.shape:
        sizes = (" x ".join(str(size) for size in volume.shape[1:]) for volume in (image, label))
        raise BundleError("degraded series ({}) and target ({}) have different sizes".format(*sizes))
    images, labels = (_corners_mm(np.asarray(volume.affine), volume.shape[1:]) for volume in (image, label))
    apart = np.linalg.norm(images - labels, axis=1)
    if apart[0] > _FIRST_VOXEL_MM or apart.max() > _CORNERS_MM:
        raise BundleError(
            f"degraded series and target do not lie in the same place (they differ by {apart.max():.1f} mm)"
        )


def _corners_mm(affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Positions of a volume's corner voxels in mm (8, 3), the first voxel first."""
    voxels = np.array(list(itertools.product(*((0, size - 1) for size in shape))), np.float64)
    return voxels @ affine[:3, :3].T + affine[:3, 3]


def _volume(image: MetaTensor) -> np.ndarray:
    return np.ascontiguousarray(image.as_tensor()[0].float().cpu().numpy())
