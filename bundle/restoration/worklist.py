"""The series of a run, one after the other; one that cannot be read does not stop the rest."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset

from bundle.data.sources import Case
from bundle.errors import BundleError, ExitCode, defect, find_bundle_error


class SeriesDataset(Dataset):
    """Items are {'case': Case, 'data': transformed}, or have 'finished': True or 'failure': error in place of the data.

    A failure is a BundleError where it concerns that series alone, else whatever was raised.

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
        """Load series `index`, unless it is finished; never raises: a thread that reads ahead would lose the error."""
        case = self.data[index]
        try:
            if self.finished(case):
                return {"case": case, "finished": True}
            return {"case": case, "data": self.load(case)}
        except Exception as error:
            known = find_bundle_error(error)
            return {"case": case, "failure": known if _of_one_series(known) else error}

    def load(self, case: Case) -> Mapping[str, Any]:
        """Return the transformed data of one series."""
        return self.transform({"image": list(case.files)})


def failure_of(error: Exception) -> BundleError:
    """Return what to say of a series that failed; of a defect of ours the traceback is kept in a file.

    Raises:
        Exception: `error` itself, when the next series would fail as well (full disk) or none is wanted (interrupted).
    """
    known = find_bundle_error(error) or defect(error)
    if _of_one_series(known) or known.exit_code == ExitCode.DEFECT:
        return known
    raise error


def _of_one_series(error: BundleError | None) -> bool:
    return error is not None and error.exit_code == ExitCode.USER


def single(batch: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Collate a batch of one: series differ in size and carry headers."""
    return batch[0]
