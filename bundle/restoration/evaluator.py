"""MONAI's evaluator over series: load, restore, postprocess, and go on when one of them fails."""

import contextlib
import dataclasses
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from ignite.engine import Engine
from monai.data import MetaTensor, ThreadDataLoader
from monai.engines import SupervisedEvaluator
from torch.utils.data import DataLoader

from bundle.configuration import set_exit_code
from bundle.data.sources import Case
from bundle.dicom.geometry import grid_spacing_mm
from bundle.dicom.index import Refusal
from bundle.diffusion.bridge import BrownianBridge
from bundle.errors import BundleError, ExitCode, InterruptedRun
from bundle.networks.restorer import Restorer
from bundle.pages import Scratch, let_go
from bundle.progress import Progress
from bundle.restoration.behind import Behind, Rest
from bundle.restoration.domain import domain_of
from bundle.restoration.inferer import RestorationInferer
from bundle.restoration.outputs import RunOutput
from bundle.restoration.registry import NO_CARD, WeightsCard
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
        pipelined: read the next series and write the one before while one is worked on; three are on disk then.
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
        pipelined: bool = False,
        val_handlers: Sequence[Any] | None = None,
    ) -> None:
        inferer.require_fit(network)
        loader: Any = DataLoader(dataset, batch_size=1, collate_fn=single)
        if pipelined:
            source = cast(Any, dataset)  # MONAI's type is its own Dataset, its code takes torch's
            loader = ThreadDataLoader(source, buffer_size=1, batch_size=1, collate_fn=single)
        super().__init__(
            device=torch.device(device),
            val_data_loader=loader,
            network=network.to(device),
            inferer=inferer,
            val_handlers=val_handlers,
            decollate=False,
        )
        # Ignite would say each start and error a second time, in its own words.
        self.logger.setLevel(logging.CRITICAL)
        self.verb = verb
        self.stop_asked = threading.Event()
        self.defect = False  # whether a series failed by one of ours
        self._behind = Behind(self._tell, threaded=pipelined)

    def process(self, case: Case, data: Mapping[str, Any]) -> Rest | None:
        """Do the work on one series; returns the part of it that can be done while the next is worked on."""
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
        self._progress = Progress(self.verb, total=len(self.data_loader), unit="volume")  # type: ignore[arg-type]
        try:
            with stops_between_series(self.stop_asked):
                try:
                    super().run(global_epoch)
                finally:
                    self._behind.wait()
        finally:
            self._progress.close()

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
        # The engine holds its last batch until it has the next one: two studies would be in memory.
        cast(dict[str, Any], batchdata).clear()
        return {}

    def _attempt(self, case: Case, batchdata: Mapping[str, Any]) -> None:
        try:
            if "failure" in batchdata:
                raise batchdata["failure"]
            rest = self.process(case, batchdata["data"])
        except Exception as error:
            self._tell(case, error)
        else:
            self._behind.hand_over(case, rest or (lambda: None))

    def _tell(self, case: Case, error: Exception | None) -> None:
        """Say and count what came of a series; raises the error of one that all others would share."""
        if error is None:
            logger.info("series %s: done", case.key)
            return
        known = failure_of(error)
        self.defect |= known.exit_code == ExitCode.DEFECT
        self.fail(case, known)
        logger.warning("series %s: %s", case.key, known)


@contextlib.contextmanager
def stops_between_series(stop_asked: threading.Event) -> Iterator[None]:
    """Turn SIGTERM and the first Ctrl-C into a wish to stop after the series in hand; a second Ctrl-C stops at once."""

    def ask(number: int, _: object) -> None:
        if number == signal.SIGINT:
            if stop_asked.is_set():
                raise KeyboardInterrupt
            print("stopping after this series; press Ctrl-C again to stop at once", file=sys.stderr, flush=True)
        stop_asked.set()

    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class RestorationEvaluator(SeriesEvaluator):
    """Restores every series and writes what was derived from it.

    Args:
        dataset: the series.
        postprocessing: from {'case', 'image', 'difference', ...} to the written series.
        output: the run's output.
        refused: what the index would not use, for the summary.
        card: what is known of the weights.
        strict_domain: refuse series outside the weights' domain.
        objections: what puts every series outside it (`registry.objections`).
        other_domains: of weights for other tasks (`registry.other_domains`), to name those that a series fits.
        scratch: where differences and deviations lie until they are written.
        **others: as for SeriesEvaluator.
    """

    def __init__(
        self,
        dataset: SeriesDataset,
        *,
        postprocessing: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        output: RunOutput,
        refused: Sequence[Refusal] = (),
        card: WeightsCard = NO_CARD,
        strict_domain: bool = False,
        objections: Sequence[str] = (),
        other_domains: Mapping[str, Mapping[str, Any]] | None = None,
        scratch: Scratch | None = None,
        **others: Any,
    ) -> None:
        super().__init__(dataset, verb="restoring", **others)
        self.finish = postprocessing
        self.output = output
        self.refused = list(refused)
        self.card = card
        self.strict_domain = strict_domain
        self.objections = tuple(objections)
        self.other_domains = other_domains
        self.scratch = scratch or Scratch()
        use_card(cast(Restorer, self.network), card)

    def run(self, global_epoch: int = 1) -> None:  # type: ignore[override] # as MONAI's Evaluator.run
        """Restore all series and write the run's summary, also when interrupted."""
        self.output.require_folder()
        complete = False
        try:
            if len(self.data_loader):  # type: ignore[arg-type] # a share may be empty
                super().run(global_epoch)
            complete = True
        finally:
            self.output.write_summary(self.refused, complete=complete)
        if self.defect:
            set_exit_code(ExitCode.DEFECT)

    def process(self, case: Case, data: Mapping[str, Any]) -> Rest:
        """Restore one series; the rest is to write it.

        Raises:
            BundleError: under `strict_domain`, when the series is outside the weights' domain.
        """
        image = data["image"]
        domain = domain_of(
            image.meta["volume"],
            self.card.domain,
            objections=self.objections,
            others=self.other_domains,
            strict=self.strict_domain,
        )
        if not domain.inside:
            logger.warning("series %s: %s", case.key, domain.warning)
        difference, deviation = self._restored(image, case.key)
        finished = {"case": case, "image": image, "difference": MetaTensor(difference, meta=image.meta)}
        if deviation is not None:
            finished["deviation"] = MetaTensor(deviation, meta=image.meta)
            method = cast(Restorer, self.network).process.method
            finished["calibrated"] = domain.inside and self.card.calibrates(method, steps=self.inferer.steps)
        return lambda: self.finish({**finished, "domain": domain})

    def _restored(self, image: MetaTensor, key: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Difference and deviation, HU (1, H, W, D): half precision where they need no resampling."""
        # Whole HU come as they are; on another grid they are resampled to float32, and the difference will be, too.
        kind = np.float32 if image.is_floating_point() else np.float16
        spacing_mm = torch.as_tensor(grid_spacing_mm(np.asarray(image.affine)), dtype=torch.float32)
        volume = image.as_tensor()[0]
        height, width, depth = volume.shape
        # Slices contiguous, as they are written and read again.
        maps = [
            self.scratch((depth, width, height), kind).transpose(2, 1, 0)
            for _ in range(2 if self.inferer.num_samples > 1 else 1)
        ]
        with Progress(f"series {key}", total=volume.shape[-1], unit="slice") as progress:
            for piece in self.inferer.pieces(volume, cast(Restorer, self.network), spacing_mm=spacing_mm):
                for array, values in zip(maps, (piece.difference, piece.deviation), strict=False):
                    if values is not None:
                        array[..., piece.slices] = values.numpy()
                        let_go(array[..., piece.slices])
                progress.update(piece.worked)
        tensors = [torch.from_numpy(array)[None] for array in maps]
        return tensors[0], tensors[1] if len(tensors) > 1 else None

    def skip(self, case: Case) -> None:
        """Count a series that is finished already."""
        self.output.skip(case)

    def fail(self, case: Case, error: BundleError) -> None:
        """Count a series that could not be restored."""
        self.output.fail(case, error)


def use_card(network: Restorer, card: WeightsCard) -> None:
    """Tell the sampler what one step of these weights leaves unknown.

    Raises:
        BundleError: when the weights were trained under another process.
    """
    bridge = isinstance(network.process, BrownianBridge)
    if card.sampler and (card.sampler == "bridge") != bridge:
        raise BundleError(
            f"these weights were trained under sampler '{card.sampler}' and mean nothing under another process",
            hint="leave sampler out",
        )
    if isinstance(network.process, BrownianBridge) and card.residual_std:
        network.process = dataclasses.replace(network.process, residual_std=card.residual_std)
