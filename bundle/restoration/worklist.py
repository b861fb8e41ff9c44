"""The series of a run, one after the other; one that cannot be read does not stop the rest."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset

from bundle.data.sources import Case
from bundle.errors import BundleError, find_bundle_error


class SeriesDataset(Dataset):
    """Items are {'case': Case, 'data': transformed} or {'case': Case, 'failure': BundleError}.

    Args:
        data: the cases.
        transform: MONAI chain from {'image': files} to {'image': MetaTensor (1, H, W, D) HU}.
        finished: says whether a case has its result already and can be skipped.
    """

    def __init__(
        self,
        data: Sequence[Case],
        transform: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        *,
        finished: Callable[[Case], bool] | None = None,
    ) -> None:
        self.data = list(data)
        self.transform = transform
        self.finished = finished or (lambda _: False)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Load series `index`, unless it is finished."""
        case = self.data[index]
        if self.finished(case):
            return {"case": case, "finished": True}
        try:
            return {"case": case, "data": self.transform({"image": list(case.files)})}
        except Exception as error:
            return {"case": case, "failure": failure_of(error)}


def failure_of(error: BaseException) -> BundleError:
    """Return the BundleError behind `error`; re-raise what is a defect of ours or of the disk."""
    known = find_bundle_error(error)
    if known is None or known.exit_code != 2:
        raise error
    return known


def single(batch: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Collate a batch of one: series differ in size and carry headers."""
    return batch[0]
