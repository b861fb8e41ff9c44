"""MONAI's evaluator over series: load, restore, postprocess, and go on when one of them fails."""

import logging
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.engines import SupervisedEvaluator
from torch.utils.data import DataLoader

from bundle.data.sources import Case
from bundle.dicom.geometry import grid_spacing_mm
from bundle.dicom.index import Refusal
from bundle.errors import BundleError, InterruptedRun
from bundle.networks.restorer import Restorer
from bundle.progress import Progress
from bundle.restoration.inferer import RestorationInferer
from bundle.restoration.outputs import RunOutput
from bundle.restoration.worklist import SeriesDataset, failure_of, single

logger = logging.getLogger(__name__)


class SeriesEvaluator(SupervisedEvaluator):
    """Goes through series, one an iteration; what fails is counted, and SIGTERM ends the run between two of them.

    Args:
        dataset: the series.
        device: where the network runs.
        network: the Restorer.
        inferer: HU to HU.
        verb: what is being done, for the progress bar.
        val_handlers: MONAI or Ignite handlers.
    """

    inferer: RestorationInferer

    def __init__(
        self,
        dataset: SeriesDataset,
        *,
        device: torch.device | str,
        network: Restorer,
        inferer: RestorationInferer,
        verb: str,
        val_handlers: Sequence[Any] | None = None,
    ) -> None:
        super().__init__(
            device=torch.device(device),
            val_data_loader=DataLoader(dataset, batch_size=1, collate_fn=single),
            network=network.to(device).to(memory_format=torch.channels_last_3d),  # type: ignore[call-overload]
            inferer=inferer,
            val_handlers=val_handlers,
            decollate=False,
        )
        # Ignite would say each start and error a second time, in its own words.
        self.logger.setLevel(logging.CRITICAL)
        self.verb = verb
        self.stop_asked = threading.Event()

    def process(self, case: Case, data: Mapping[str, Any]) -> None:
        """Do the work on one series."""
        raise NotImplementedError

    def skip(self, case: Case) -> None:
        """Count a series that is finished already."""

    def fail(self, case: Case, error: BundleError) -> None:
        """Count a series that could not be read or worked on."""
        raise NotImplementedError

    def run(self, global_epoch: int = 1) -> None:  # type: ignore[override] # as MONAI's Evaluator.run
        """Go through all series.

        Raises:
            InterruptedRun: after the series in hand, when SIGTERM came.
        """
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: self.stop_asked.set())
        self._progress = Progress(self.verb, total=len(self.data_loader), unit="volume")  # type: ignore[arg-type]
        try:
            super().run(global_epoch)
        finally:
            self._progress.close()

    def image_on_device(self, image: MetaTensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return HU (1, 1, H, W, D) and spacing (1, 3) in mm of an image (1, H, W, D)."""
        spacing_mm = grid_spacing_mm(np.asarray(image.affine))
        device = self.state.device
        return image.as_tensor()[None].to(device), torch.as_tensor(spacing_mm, dtype=torch.float32)[None].to(device)

    def _iteration(self, engine: Engine, batchdata: Mapping[str, Any]) -> dict[str, Any]:
        case = batchdata["case"]
        if self.stop_asked.is_set():
            raise InterruptedRun("stopped between series; what is finished is kept")
        self.network.eval()
        if batchdata.get("finished"):
            self.skip(case)
            logger.info("series %s: done before, skipped", case.key)
        else:
            self._attempt(case, batchdata)
        self._progress.update()
        return {}

    def _attempt(self, case: Case, batchdata: Mapping[str, Any]) -> None:
        try:
            if "failure" in batchdata:
                raise batchdata["failure"]
            self.process(case, batchdata["data"])
        except Exception as error:
            known = failure_of(error)
            self.fail(case, known)
            logger.warning("series %s: %s", case.key, known)
        else:
            logger.info("series %s: done", case.key)


class RestorationEvaluator(SeriesEvaluator):
    """Restores every series and writes what was derived from it.

    Args:
        dataset: the series.
        postprocessing: from {'case', 'image', 'difference'} to the written series.
        output: the run's output.
        refused: what the index would not use, for the summary.
        **others: as for SeriesEvaluator.
    """

    def __init__(
        self,
        dataset: SeriesDataset,
        *,
        postprocessing: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        output: RunOutput,
        refused: Sequence[Refusal] = (),
        **others: Any,
    ) -> None:
        super().__init__(dataset, verb="restoring", **others)
        self.finish = postprocessing
        self.output = output
        self.refused = list(refused)

    def run(self, global_epoch: int = 1) -> None:  # type: ignore[override] # as MONAI's Evaluator.run
        """Restore all series and write the run's summary, also when interrupted."""
        self.output.require_folder()
        try:
            super().run(global_epoch)
        finally:
            self.output.write_summary(self.refused)

    def process(self, case: Case, data: Mapping[str, Any]) -> None:
        """Restore one series and write it."""
        image = data["image"]
        inputs, spacing_mm = self.image_on_device(image)
        restored = self.inferer(inputs, cast(Restorer, self.network), spacing_mm=spacing_mm)
        difference = MetaTensor((restored - inputs)[0].cpu(), meta=image.meta)
        self.finish({"case": case, "image": image, "difference": difference})

    def skip(self, case: Case) -> None:
        """Count a series that is finished already."""
        self.output.skip(case)

    def fail(self, case: Case, error: BundleError) -> None:
        """Count a series that could not be restored."""
        self.output.fail(case, error)
