"""The last step of a restoration: what was restored, its uncertainty and what is known of both, written whole."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from monai.transforms import Transform

import bundle
from bundle.configuration import checked_number
from bundle.data.sources import Case
from bundle.dicom.instance import named_syntax
from bundle.dicom.volume import Volume
from bundle.dicom.writer import Derivation, write_derived_series
from bundle.files import whole_folder
from bundle.pages import Scratch
from bundle.restoration.data_consistency import make_consistent
from bundle.restoration.domain import Domain
from bundle.restoration.loading import turned_to
from bundle.restoration.nifti import NiftiSource, write_nifti
from bundle.restoration.outputs import SCHEMA, RunOutput
from bundle.restoration.registry import NO_CARD, WeightsCard
from bundle.restoration.report import write_report
from bundle.restoration.restored import RestoredSlices, SourceSlices
from bundle.restoration.review import Review
from bundle.restoration.thick_again import thick_again
from bundle.restoration.uncertainty import Uncertainty, uncertainty_of, write_parametric_map

logger = logging.getLogger(__name__)


class SaveRestored(Transform):
    """Last of the postprocessing: adds the difference to the native volume and writes the derived series.

    Takes {'case', 'image', 'difference'} and optionally 'deviation', 'calibrated' (whether the card is for draws like
    these) and 'domain': image carries its source, difference and deviation (1, H, W, D) in HU are on its grid. Voxels
    outside the body, padding and values beyond the hard limits keep their stored values bit for bit.

    Args:
        output: the run's output.
        strength: share of the difference that is applied; 0 gives the input back bit for bit.
        description: the method in words, for Derivation Description.
        series_suffix: appended to the Series Description.
        save_nifti: also write volume.nii.gz.
        transfer_syntax: of the DICOM files, as for `write_derived_series`.
        card: what is known of the weights; calibrates the uncertainty.
        num_samples: how many draws the difference is the mean of.
        report: also write report.html.
        data_consistency: thin slices average to the thick ones that they came from.
        scratch: where what is written of the uncertainty lies until then.
    """

    def __init__(
        self,
        output: RunOutput,
        *,
        strength: float = 1.0,
        description: str,
        series_suffix: str = "enhanced",
        save_nifti: bool = False,
        transfer_syntax: str = "explicit",
        card: WeightsCard = NO_CARD,
        num_samples: int = 1,
        report: bool = False,
        data_consistency: bool = False,
        scratch: Scratch | None = None,
    ) -> None:
        named_syntax(transfer_syntax)  # a wrong name ends the run before any work is done
        self.output = output
        self.strength = checked_number("strength", strength, float, low=0, high=1)
        self.description = description
        self.series_suffix = series_suffix
        self.save_nifti = save_nifti
        self.transfer_syntax = transfer_syntax
        self.card = card
        self.num_samples = num_samples
        self.report = report
        self.data_consistency = data_consistency
        self.scratch = scratch or Scratch()

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Write one series; the folder appears whole or not at all."""
        case: Case = data["case"]
        source: SourceSlices = data["image"].meta["volume"]
        review = Review(source.shape[2], again=thick_again(source) if self.card.task == "thin" else None)
        difference = _native(data["difference"], source)
        if self.data_consistency:
            make_consistent(difference, source)
        restored = RestoredSlices(source, difference, strength=self.strength, on_slice=review.add)
        domain: Domain | None = data.get("domain")
        uncertainty = self._uncertainty(data, restored, review)
        described = self._describe(case, source, review, domain, uncertainty)
        with whole_folder(self.output.folder / case.key) as folder:
            mapping = self._write(source, restored, uncertainty, folder, domain)
            (folder / "summary.json").write_text(json.dumps(described, indent=2) + "\n")
            if self.report:
                write_report(
                    folder / "report.html",
                    source,
                    restored,
                    uncertainty=uncertainty,
                    summary=described,
                    now=self.output.now,
                )
            self.output.write_private(folder, mapping)
        self.output.add(case, described, mapping)
        return {**data, "restored": restored, "uncertainty": uncertainty, "summary": described}

    def _uncertainty(self, data: Mapping[str, Any], restored: RestoredSlices, review: Review) -> Uncertainty | None:
        if data.get("deviation") is None:
            return None
        return uncertainty_of(
            _native(data["deviation"], restored.source),
            restored.difference,
            calibration=self.card.calibration,
            noise_hu=review.noise_hu,
            samples=self.num_samples,
            strength=self.strength,
            calibrated=bool(data.get("calibrated")),
        )

    def _write(
        self,
        source: SourceSlices,
        restored: RestoredSlices,
        uncertainty: Uncertainty | None,
        folder: Path,
        domain: Domain | None,
    ) -> dict[str, str]:
        """Write what was asked for below `folder`; returns the map of UIDs."""
        if not isinstance(source, Volume):
            write_nifti(folder / "volume.nii.gz", restored, source, self.scratch)
            if uncertainty is not None:
                write_nifti(folder / "uncertainty" / "deviation.nii.gz", uncertainty, source, self.scratch)
            return {}
        derivation = Derivation(
            description=f"{self.description}; {domain.said}" if domain else self.description,
            series_suffix=self.series_suffix
            if domain is None or domain.inside
            else f"{self.series_suffix} (out of domain)",
            settings_digest=self.output.settings_digest,
            weights_digest=self.output.weights_digest,
            software_version=bundle.__version__,
        )
        derived = write_derived_series(
            source,
            cast(np.ndarray, restored),  # asked for slice by slice
            folder / "dicom",
            derivation=derivation,
            now=self.output.now,
            transfer_syntax=self.transfer_syntax,
        )
        if self.save_nifti:
            write_nifti(folder / "volume.nii.gz", restored, source)
        if uncertainty is not None:
            target, now = folder / "uncertainty", self.output.now
            write_parametric_map(target, uncertainty, derived, now=now, pages=self.scratch)
            write_nifti(folder / "uncertainty" / "deviation.nii.gz", uncertainty, source)
        return derived.uid_mapping

    def _describe(
        self,
        case: Case,
        source: SourceSlices,
        review: Review,
        domain: Domain | None,
        uncertainty: Uncertainty | None,
    ) -> dict[str, Any]:
        """Summary of a series, without identifiers."""
        interpolated = [k for k in range(source.shape[2]) if isinstance(source, Volume) and not source.is_true_slice(k)]
        found = review.summary()
        for warning in found["warnings"]:
            logger.warning("series %s: %s", case.key, warning)
        return {
            "schema": SCHEMA,
            "series": case.key,
            "fingerprint": self.output.fingerprint(case),
            "shape": list(source.shape),
            "spacing_mm": [round(value, 6) for value in source.spacing_mm],
            "interpolated_slices": interpolated,
            **found,
            **({} if domain is None else {"in_domain": domain.word, "domain": domain.described()}),
            **({} if uncertainty is None else {"uncertainty": uncertainty.described()}),
            "settings": self.output.settings,
            "weights_sha256": self.output.weights_digest,
            "software_version": bundle.__version__,
        }


def _native(image: Any, source: SourceSlices) -> np.ndarray:
    """(1, H, W, D) MetaTensor as a writable array in the source's voxel order, float16 or float32; copies nothing."""
    array: np.ndarray = torch.as_tensor(image)[0].numpy()
    array = array if array.dtype in (np.float16, np.float32) else array.astype(np.float32)
    assert isinstance(source, Volume | NiftiSource)
    return turned_to(array, np.asarray(image.affine), source.affine_ras)
