"""What a restoration leaves on disk: per series a folder, for the run a summary."""

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Transform

import bundle
from bundle.configuration import set_exit_code
from bundle.data.sources import Case
from bundle.dicom.index import Refusal
from bundle.dicom.instance import named_syntax
from bundle.dicom.volume import Volume
from bundle.dicom.writer import Derivation, DerivedSeries, write_derived_series
from bundle.errors import BundleError, ExitCode
from bundle.files import digest, require_writable, whole_folder, write_json
from bundle.metrics.noise import noise_level
from bundle.restoration.region import apply_difference

_SCHEMA = 1


class RunOutput:
    """The output folder of a run: knows what is finished, collects results, writes the run's summary.

    Args:
        folder: the output folder.
        settings: everything that decides the restored pixels.
        weights_digest: SHA-256 of the weights.
        now: the run's one clock reading.
        tolerate_bad_series: end with exit code 0 although series were refused or failed.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        settings: Mapping[str, Any],
        weights_digest: str,
        now: datetime.datetime,
        tolerate_bad_series: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.settings = dict(settings)
        self.settings_digest = digest(json.dumps(self.settings, sort_keys=True, default=str))
        self.weights_digest = weights_digest
        self.now = now
        self.tolerate_bad_series = tolerate_bad_series
        self.done: dict[str, dict[str, Any]] = {}
        self.failed: dict[str, str] = {}

    def fingerprint(self, case: Case) -> str:
        """Digest of a series' content, the settings and the weights."""
        return digest(case.content_digest(), self.settings_digest, self.weights_digest)

    def finished(self, case: Case) -> bool:
        """Whether this series was restored before with the same content, settings and weights."""
        summary = self.folder / case.key / "summary.json"
        try:
            found = json.loads(summary.read_text())
        except (OSError, ValueError):
            return False
        return found.get("fingerprint") == self.fingerprint(case)

    def skip(self, case: Case) -> None:
        """Count a finished series with what an earlier run wrote about it."""
        try:
            earlier = json.loads((self.folder / "summary.json").read_text())["series"].get(case.key, {})
        except (OSError, ValueError, KeyError):
            earlier = {}
        self.done[case.key] = earlier or {"status": "done", "source": list(case.files)}

    def fail(self, case: Case, error: BundleError) -> None:
        """Count a series that could not be read or restored."""
        self.failed[case.key] = str(error)

    def add(self, case: Case, described: Mapping[str, Any], mapping: Mapping[str, str]) -> None:
        """Count a restored series."""
        self.done[case.key] = {
            "status": "done",
            "source": list(case.files),
            "uid_mapping": dict(mapping),
            "result": dict(described),
        }

    def write_summary(self, refused: Sequence[Refusal] = ()) -> ExitCode:
        """Write OUT/summary.json (mode 0600: it maps keys to source paths and UIDs) and set the exit code."""
        bad = [refusal for refusal in refused if not refusal.foreign]
        content = {
            "schema": _SCHEMA,
            "software_version": bundle.__version__,
            "finished": self.now.isoformat(timespec="seconds"),
            "settings": self.settings,
            "weights_sha256": self.weights_digest,
            "series": self.done,
            "failed": self.failed,
            "refused": [{"key": r.key, "reason": r.reason, "where": r.where} for r in bad],
            "ignored": [{"reason": r.reason, "where": r.where} for r in refused if r.foreign],
        }
        write_json(self.folder / "summary.json", content, private=True)
        partial = bool(bad or self.failed) and not self.tolerate_bad_series
        code = ExitCode.PARTIAL if partial else ExitCode.DONE
        set_exit_code(code)
        return code

    def require_folder(self) -> None:
        """Refuse an output folder that cannot be written to, before any work is done."""
        require_writable(self.folder, option="output_dir")


class SaveRestored(Transform):
    """Last of the postprocessing: adds the difference to the native volume and writes the derived series.

    Takes {'case', 'image', 'difference'}: image carries its Volume, difference (1, H, W, D) HU is on its grid.
    Voxels outside the body, padding and values beyond the hard limits keep their stored values bit for bit.

    Args:
        output: the run's output.
        strength: share of the difference that is applied; 0 gives the input back bit for bit.
        description: the method in words, for Derivation Description.
        series_suffix: appended to the Series Description.
        save_nifti: also write volume.nii.gz.
        transfer_syntax: of the DICOM files, as for `write_derived_series`.
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
    ) -> None:
        named_syntax(transfer_syntax)  # a wrong name ends the run before any work is done
        if not 0 <= strength <= 1:
            raise BundleError(f"strength must be between 0 and 1, not {strength}")
        self.output = output
        self.strength = strength
        self.description = description
        self.series_suffix = series_suffix
        self.save_nifti = save_nifti
        self.transfer_syntax = transfer_syntax

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Write one series; the folder appears whole or not at all."""
        case: Case = data["case"]
        source = data["image"].meta.get("volume")
        difference_hu = np.asarray(torch.as_tensor(data["difference"])[0], dtype=np.float32)
        if source is None:
            raise BundleError(f"series {case.key} is no DICOM series: nothing can be derived from it")
        restored_hu = apply_difference(
            source.array, difference_hu, strength=self.strength, padding_mask=source.padding_mask
        )
        described = self._describe(case, source, restored_hu)
        with whole_folder(self.output.folder / case.key) as folder:
            derived = self._write(source, restored_hu, folder)
            (folder / "summary.json").write_text(json.dumps(described, indent=2) + "\n")
        self.output.add(case, described, derived.uid_mapping)
        return {**data, "restored_hu": restored_hu}

    def _write(self, source: Volume, restored_hu: np.ndarray, folder: Path) -> DerivedSeries:
        derivation = Derivation(
            description=self.description,
            series_suffix=self.series_suffix,
            settings_digest=self.output.settings_digest,
            weights_digest=self.output.weights_digest,
            software_version=bundle.__version__,
        )
        if self.save_nifti:
            import nibabel

            nibabel.save(nibabel.Nifti1Image(restored_hu, source.affine_ras), folder / "volume.nii.gz")
        return write_derived_series(
            source,
            restored_hu,
            folder / "dicom",
            derivation=derivation,
            now=self.output.now,
            transfer_syntax=self.transfer_syntax,
        )

    def _describe(self, case: Case, source: Volume, restored_hu: np.ndarray) -> dict[str, Any]:
        """Summary of a series, without identifiers."""
        change = restored_hu - source.array
        before, after = noise_level(source.array), noise_level(restored_hu)
        return {
            "schema": _SCHEMA,
            "series": case.key,
            "fingerprint": self.output.fingerprint(case),
            "shape": list(source.array.shape),
            "spacing_mm": [round(value, 6) for value in source.spacing_mm],
            "interpolated_slices": [k for k in range(source.shape[2]) if not source.is_true_slice(k)],
            "noise_hu_before": round(float(np.median(before)), 3),
            "noise_hu_after": round(float(np.median(after)), 3),
            "mean_change_hu": round(float(change.mean()), 4),
            "largest_change_hu": round(float(np.abs(change).max()), 2),
            "changed_fraction": round(float((change != 0).mean()), 4),
            "settings": self.output.settings,
            "weights_sha256": self.output.weights_digest,
            "software_version": bundle.__version__,
        }
