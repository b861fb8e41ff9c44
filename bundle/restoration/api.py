"""For notebooks and other programs: load the bundle once, then restore arrays or DICOM folders.

from bundle.restoration.api import load_restorer

restore = load_restorer(steps=4, num_samples=8)
result = restore(volume_hu, affine)            # HU (H, W, D), voxel to RAS mm
for result in restore.folder("STUDY"):         # every usable series below a folder
    result.restored_hu, result.uncertainty_hu, result.domain, result.review["warnings"]
"""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd

from bundle.configuration import bundle_root, checked_number
from bundle.data.sources import Case, Source
from bundle.dicom.geometry import grid_spacing_mm
from bundle.dicom.thin_slices import ThinSlices
from bundle.dicom.volume import Volume
from bundle.errors import BundleError, find_bundle_error
from bundle.networks.precision import prepare_cpu
from bundle.networks.restorer import Restorer
from bundle.overrides import check_options, load_config
from bundle.progress import Progress
from bundle.restoration.data_consistency import make_consistent
from bundle.restoration.domain import Domain, domain_of
from bundle.restoration.evaluator import use_card
from bundle.restoration.inferer import RestorationInferer
from bundle.restoration.nifti import NiftiSource
from bundle.restoration.region import added, touchable
from bundle.restoration.registry import WeightsCard
from bundle.restoration.review import Review
from bundle.restoration.thick_again import thick_again
from bundle.restoration.uncertainty import uncertainty_of
from bundle.restoration.worklist import failure_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Restoration:
    """One restored volume.

    Attributes:
        restored_hu: (H, W, D), float32, on the input's grid, or with slice_spacing_mm on one of thin slices;
            untouched voxels keep their values.
        uncertainty_hu: standard deviation (H, W, D), calibrated where the weights' card says how; None with one sample.
        affine: (i, j, k, 1) -> RAS mm, (4, 4).
        key: of the series; empty for an array.
        domain: whether it is within what the weights were made for, and why not.
        calibrated: whether the card's calibration was fitted to samples drawn as these, and to series like this one
            (within the domain); None with one sample.
        review: what it did, as `summary.json` says it (`review.Review.summary`), `warnings` among it.
    """

    restored_hu: np.ndarray
    uncertainty_hu: np.ndarray | None
    affine: np.ndarray
    key: str = ""
    domain: Domain | None = None
    calibrated: bool | None = None
    review: Mapping[str, Any] = field(default_factory=dict)


class LoadedRestorer:
    """The inference config's network and transforms, built once; see `load_restorer`.

    Args:
        parser: of the inference config.

    Attributes:
        failed: of the last folder, series key -> why that series could not be restored.
    """

    def __init__(self, parser: ConfigParser) -> None:
        parser["scratch_dir"] = parser["output_dir"] = None  # whole arrays come out: nothing is worked on on disk
        self.weights_digest: str = parser.get_parsed_content("weights_digest")
        self.network: Restorer = parser.get_parsed_content("engine")
        card: WeightsCard = parser.get_parsed_content("card")
        use_card(self.network, card)
        self.inferer: RestorationInferer = parser.get_parsed_content("inferer")
        self.device = torch.device(parser.get_parsed_content("device"))
        self.strength = checked_number("strength", parser.get_parsed_content("strength"), float, low=0, high=1)
        self.card = card
        self.consistent: bool = parser.get_parsed_content("consistent")
        self._domain = functools.partial(
            domain_of,
            ranges=card.domain,
            objections=parser.get_parsed_content("evaluator::objections"),
            others=parser.get_parsed_content("evaluator::other_domains"),
            strict=parser.get_parsed_content("evaluator::strict_domain"),
        )
        self.failed: dict[str, str] = {}
        self._parser = parser
        self.thin: ThinSlices | None = parser.get_parsed_content("thin")
        loader, *rest = parser.get_parsed_content("preprocessing").transforms
        self._load, self._prepare = loader, Compose(rest)
        self._back = Invertd("difference", transform=self._prepare, orig_keys="image", nearest_interp=False)
        self.network.to(self.device).eval()

    def __call__(self, volume_hu: np.ndarray, affine: np.ndarray, *, progress: bool = False) -> Restoration:
        """Restore an array.

        Args:
            volume_hu: HU (H, W, D), D the slices.
            affine: (i, j, k, 1) -> RAS mm, (4, 4); in DICOM's LPS, flip the first two rows' signs first.
            progress: show a progress bar over slices.

        Raises:
            BundleError: when the array is not 3D or not finite, the affine is no grid, or under `strict_domain` the
                volume outside the weights' domain.
        """
        volume_hu, affine = np.asarray(volume_hu, np.float32), np.asarray(affine, np.float64)
        if volume_hu.ndim != 3 or not np.isfinite(volume_hu).all():
            raise BundleError("volume_hu must be finite HU of shape (H, W, D)", hint="replace NaN, squeeze other axes")
        if affine.shape != (4, 4) or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
            raise BundleError("affine must be a 4 x 4 matrix from voxels to mm", hint="take it from the image's header")
        if self.thin is not None:
            volume_hu, affine = self.thin.array(volume_hu, affine)
        domain = self._domain(NiftiSource(volume_hu, affine))
        image = MetaTensor(torch.from_numpy(volume_hu)[None], affine=torch.from_numpy(affine))
        return _told(self._restore(image, volume_hu, progress=progress), domain)

    def folder(self, folder: str | Path) -> Iterator[Restoration]:
        """Yield the restorations of a folder of DICOM or NIfTI, as the command would: what is selected, by series keys.

        A series that cannot be read or restored is logged and listed in `failed`; the others go on.

        Raises:
            BundleError: when there is none, or the disk fails.
        """
        self.failed = {}
        self._parser["dataset_dir"] = str(folder)
        with _bundle_errors():
            source: Source = self._parser.get_parsed_content("source")
        for case in source.cases:
            try:
                restoration = self._series(case)
            except Exception as error:
                self.failed[case.key] = str(failure_of(error))
                logger.warning("series %s: %s", case.key, self.failed[case.key])
            else:
                yield restoration

    def _series(self, case: Case) -> Restoration:
        image = self._load({"image": list(case.files)})["image"]
        source = image.meta["volume"]
        domain = self._domain(source)
        padding = source.padding_mask if isinstance(source, Volume) else None
        restoration = self._restore(image, image[0].numpy(), padding_mask=padding, key=case.key, source=source)
        if isinstance(source, NiftiSource):
            restored_hu, affine = source.as_in_file(restoration.restored_hu)
            deviation = restoration.uncertainty_hu
            uncertainty_hu = None if deviation is None else source.as_in_file(deviation)[0]
            restoration = dataclasses.replace(
                restoration, restored_hu=restored_hu, uncertainty_hu=uncertainty_hu, affine=affine
            )
        return _told(restoration, domain)

    @torch.inference_mode()
    def _restore(
        self,
        image: MetaTensor,
        volume_hu: np.ndarray,
        *,
        padding_mask: np.ndarray | None = None,
        key: str = "",
        source: Volume | NiftiSource | None = None,
        progress: bool = False,
    ) -> Restoration:
        prepared = self._prepare({"image": image})["image"]
        volume = prepared.as_tensor()[0]
        spacing = torch.as_tensor(grid_spacing_mm(np.asarray(prepared.affine)), dtype=torch.float32)
        maps = torch.zeros(2, *volume.shape)
        deviation = False
        told = Progress("restoring", total=volume.shape[-1], unit="slice") if progress else contextlib.nullcontext()
        with told as bar:
            for piece in self.inferer.pieces(volume, self.network, spacing_mm=spacing):
                maps[0][..., piece.slices] = piece.difference
                if piece.deviation is not None:
                    deviation = True
                    maps[1][..., piece.slices] = piece.deviation
                if bar is not None:
                    bar.update(piece.worked)
        native = self._native(maps, prepared)
        if self.consistent and source is not None:
            make_consistent(native[0], source)
        region = touchable(volume_hu, padding_mask)
        difference, spread = np.where(region, native, 0).astype(np.float32, copy=False)
        restored = added(volume_hu, difference, strength=self.strength)
        thick = thick_again(source) if source is not None and self.card.task == "thin" else None
        review = Review(volume_hu.shape[2], again=thick)
        for k in range(volume_hu.shape[2]):
            review.add(k, volume_hu[:, :, k], restored[:, :, k], region[:, :, k])
        uncertainty, calibrated = None, None
        if deviation:
            calibrated = self.card.calibrates(self.network.process.method, steps=self.inferer.steps)
            uncertainty = self._uncertainty(spread, difference, review.noise_hu)
        affine = np.asarray(image.affine, np.float64)
        return Restoration(restored, uncertainty, affine, key, calibrated=calibrated, review=review.summary())

    def _uncertainty(self, deviation: np.ndarray, difference: np.ndarray, noise_hu: np.ndarray) -> np.ndarray:
        """Calibrated deviation (H, W, D) of what a whole restoration changes, HU."""
        found = uncertainty_of(
            deviation,
            difference,
            calibration=self.card.calibration,
            noise_hu=noise_hu,
            samples=self.inferer.num_samples,
            strength=self.strength,
        )
        return np.stack([found[:, :, k] for k in range(found.shape[2])], axis=2)

    def _native(self, maps: torch.Tensor, prepared: MetaTensor) -> np.ndarray:
        """Undo orientation and spacing of (2, H, W, D)."""
        data: dict[Hashable, Any] = {"image": prepared, "difference": MetaTensor(maps, meta=prepared.meta)}
        return np.asarray(self._back(data)["difference"], np.float32)


def _told(restoration: Restoration, domain: Domain) -> Restoration:
    """The same with its domain, and what there is to warn of logged, as the command would."""
    calibrated = None if restoration.calibrated is None else restoration.calibrated and domain.inside
    restoration = dataclasses.replace(restoration, domain=domain, calibrated=calibrated)
    name = f"series {restoration.key}" if restoration.key else "array"
    if not domain.inside:
        logger.warning("%s: %s", name, domain.warning)
    for warning in restoration.review["warnings"]:
        logger.warning("%s: %s", name, warning)
    return restoration


def inference_parser(**options: Any) -> ConfigParser:
    """The inference config with `options` in place of its keys, nothing built yet.

    Raises:
        BundleError: for an option that the config does not have; names the nearest known one.
    """
    file = Path(bundle_root()) / "configs" / "inference.yaml"
    check_options(options, load_config([file]))
    parser = ConfigParser()
    parser.read_config(str(file))
    parser.read_meta(str(file.parent / "metadata.json"))
    parser.update(dict(options))
    return parser


def load_restorer(**options: Any) -> LoadedRestorer:
    """Build the network with its weights, as configs/inference.yaml says.

    The process is made ready as the command makes its own: `threads` is the number of all of its torch code, and freed
    memory is kept for the next tile.

    Args:
        **options: keys of configs/inference.yaml: steps, num_samples, strength, device, weights_file, preset ...

    Raises:
        BundleError: for an unknown option or a value that cannot be used.
    """
    with _bundle_errors():
        parser = inference_parser(**options)
        prepare_cpu(parser.get_parsed_content("threads"))
        return LoadedRestorer(parser)


@contextlib.contextmanager
def _bundle_errors() -> Iterator[None]:
    """Raise our errors as they are: a config's parser wraps them."""
    try:
        yield
    except Exception as error:
        known = find_bundle_error(error)
        if known is None:
            raise
        raise known from error
