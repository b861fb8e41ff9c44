"""The comparison: every method restores the same poor series, every metric has its range in its name."""

import logging
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from bundle import __version__
from bundle.configuration import set_exit_code
from bundle.data.sources import Case
from bundle.degrade.composition import THICK_SLICES, parse_kinds
from bundle.dicom.grouping import Refusal
from bundle.errors import BundleError, ExitCode
from bundle.evaluation import pictures
from bundle.evaluation.classical import optional_packages
from bundle.evaluation.floor import floor_values
from bundle.evaluation.measures import Target
from bundle.evaluation.methods import Estimate, Method, Problem, restricted
from bundle.evaluation.ours import RESTORED, our_methods
from bundle.evaluation.phantom import KEY as PHANTOM
from bundle.evaluation.phantom import METRICS as PHANTOM_METRICS
from bundle.evaluation.phantom import make_phantom
from bundle.evaluation.problems import make_problem
from bundle.evaluation.records import Records
from bundle.evaluation.tables import KEY_METRIC, Row, mean_rows, write_tables
from bundle.evaluation.training_record import TrainingRecord
from bundle.evaluation.truth import truth_values
from bundle.files import require_writable
from bundle.networks.restorer import Restorer
from bundle.restoration.evaluator import SeriesEvaluator, use_card
from bundle.restoration.region import apply_difference
from bundle.restoration.registry import NO_CARD, WeightsCard
from bundle.restoration.worklist import SeriesDataset

logger = logging.getLogger(__name__)

# Shown in the figures where they are in the table; the rest would make them unreadable.
_PICTURED = ("input", "bm3d", "redcnn", RESTORED)
_DEFINITIONS = {
    "input": "the degraded series",
    "floor": "what nobody can beat on average: sigma e / sqrt(sigma^2 + e^2), target's own and added noise; "
    "of the dose alone",
    "target": "the full-dose series itself",
    "truth": "what a truth without noise would read against a target with noise, ours taken for the truth; of the "
    "dose alone",
}


class ComparisonEvaluator(SeriesEvaluator):
    """Compares methods on poor series and writes metrics.json, metrics.csv, slices.csv, plots and figures.

    What a stopped call has finished, the next one with the same settings takes over.

    Args:
        dataset: items with 'image' (poor) and 'label' (target), MetaTensors (1, H, W, D) HU.
        folder: the output folder.
        refused: what the index would not use, to be told as failed.
        header: what the tables say about degradation, weights and settings.
        baselines: methods to compare with.
        methods: names of the methods to run; None runs all.
        sampled_steps: further rows: one draw with so many steps.
        averaged_samples: draws of 4 steps whose mean is a row; 0 for no such row.
        averaged_flips: mirror images whose mean is a row; 0 for no such row.
        strengths: further rows: so much of the change of the row 'restored'.
        phantom_dose: dose of the phantom's poor scan; None leaves the phantom out.
        seed: of the phantom's noise.
        training_file: the training run's data.json, to say which series were trained on; may be missing.
        card: what is known of the weights: with it, samples are drawn as `run inference` draws them.
        data_consistency: thin slices average to the thick ones that they came from.
        identity: what else decides the rows and is not to be told, such as folders; finished series of another are
            evaluated again.
        **others: as for SeriesEvaluator.
    """

    def __init__(
        self,
        dataset: SeriesDataset,
        *,
        folder: str | Path,
        refused: Sequence[Refusal] = (),
        header: Mapping[str, Any],
        baselines: Sequence[Method] = (),
        methods: Sequence[str] | None = None,
        sampled_steps: Sequence[int] = (),
        averaged_samples: int = 0,
        averaged_flips: int = 0,
        strengths: Sequence[float] = (),
        phantom_dose: float | None = None,
        seed: int = 0,
        training_file: str | Path | None = None,
        card: WeightsCard = NO_CARD,
        data_consistency: bool = False,
        identity: Mapping[str, Any] | None = None,
        **others: Any,
    ) -> None:
        super().__init__(dataset, verb="evaluating", **others)
        use_card(cast(Restorer, self.network), card)  # samples as `run inference` draws them
        self.task = card.task
        self.folder = Path(folder)
        self.header = dict(header)
        ours = our_methods(
            cast(Restorer, self.network),
            self.inferer,
            device=self.state.device,  # type: ignore[arg-type]
            sampled_steps=sampled_steps,
            averaged_samples=averaged_samples,
            averaged_flips=averaged_flips,
            strengths=strengths,
            card=card,
            data_consistency=data_consistency,
        )
        self.methods = restricted([*ours, *baselines], methods)
        self.phantom_dose = phantom_dose
        self.seed = seed
        self.training_record = TrainingRecord(training_file)
        self.rows: list[Row] = []
        self.failed = {one.key or one.where: one.reason for one in refused if not one.foreign}
        self.missing: dict[str, str] = {}
        self.missing_on_phantom: dict[str, str] = {}
        decided_by = {
            "header": self.header,
            "methods": {method.name: method.definition for method in self.methods},
            "packages": optional_packages(),
            "version": __version__,
            **(identity or {}),
        }
        self.records = Records(self.folder, decided_by)
        dataset.finished = lambda case: self.records.load(case.key) is not None
        self.problems: dict[str, dict[str, str]] = {}

    def run(self, global_epoch: int = 1) -> None:  # type: ignore[override] # as MONAI's Evaluator.run
        """Evaluate all series; write and print the tables.

        Raises:
            BundleError: when no series could be evaluated.
        """
        require_writable(self.folder, option="output_dir")
        self._warn_of_task()
        super().run(global_epoch)
        if not self.rows:
            reasons = "; ".join(sorted(set(self.failed.values())))
            code = ExitCode.DEFECT if self.defect else ExitCode.USER
            raise BundleError(f"no series could be evaluated: {reasons}", exit_code=code)
        phantom = self._phantom()  # before it is told what is missing: a method may fail on the phantom alone
        table = write_tables(
            self.folder,
            self.rows,
            header=self.header,
            failed=self.failed,
            methods={**_DEFINITIONS, **{method.name: method.definition for method in self.methods}},
            missing=self._missing(),
            problems=self.problems,
            phantom=phantom,
            parameters=self._parameters(phantom.get("rows", {})),
        )
        bars = {key: {r.method: r.values[KEY_METRIC] for r in self.rows if r.series == key} for key in self._keys()}
        bars["mean"] = {row.method: row.values[KEY_METRIC] for row in mean_rows(self.rows)}
        pictures.save_bars(self.folder / "rmse.png", bars, label="RMSE in the body, HU")
        print(table)
        partial = ExitCode.PARTIAL if self.failed else ExitCode.DONE
        set_exit_code(ExitCode.DEFECT if self.defect else partial)

    def _warn_of_task(self) -> None:
        kind = self.header.get("degradation", {}).get("kind")
        if self.task and kind != "real" and (self.task == "thin") != (THICK_SLICES in parse_kinds(kind)):
            logger.warning("the weights are for task '%s', these series have another degradation: %s", self.task, kind)

    def process(self, case: Case, data: Mapping[str, Any]) -> None:
        """Evaluate one series."""
        problem = make_problem({"case": case, "data": data})
        target = Target(problem.target_hu, spacing_mm=problem.spacing_mm)
        volumes = {"input": problem.degraded_hu, "target": problem.target_hu}
        deviations: dict[str, np.ndarray | None] = {}
        for method in self.methods:
            estimate = self._restore(method, problem, self.missing)
            if estimate is not None:
                volumes[method.name] = estimate.volume_hu
                deviations[method.name] = estimate.deviation_hu
        kinds = {method.name: method.kind for method in self.methods}
        trained_on = self.training_record.of(case.key)
        rows = [
            Row.of(
                case.key,
                name,
                trained_on,
                kinds.get(name, "reference"),
                target.slice_values(volume),
                target.series_values(volume, problem.degraded_hu, deviations.get(name)),
            )
            for name, volume in volumes.items()
        ]
        floor = floor_values(problem, target, rows[0].slices)
        rows.insert(1, Row.of(case.key, "floor", trained_on, "reference", floor, {}))
        if RESTORED in volumes and (truth := truth_values(problem, target, volumes[RESTORED])):
            rows.append(Row.of(case.key, "truth", trained_on, "reference", {}, truth))
        self._draw(case.key, volumes, target)
        self.records.save(case.key, rows, target.problems, self.missing)
        self._add(case.key, rows, target.problems)

    def skip(self, case: Case) -> None:
        """Take a series that an earlier call finished."""
        found = self.records.load(case.key)
        assert found is not None
        rows, problems, missing = found
        self.missing.update(missing)
        self._add(case.key, rows, problems)

    def fail(self, case: Case, error: BundleError) -> None:
        """Count a series that could not be evaluated."""
        self.failed[case.key] = str(error)

    def _add(self, key: str, rows: Sequence[Row], problems: Mapping[str, str]) -> None:
        self.rows += rows
        if problems:
            self.problems[key] = dict(problems)

    @staticmethod
    def _restore(method: Method, problem: Problem, missing: dict[str, str]) -> Estimate | None:
        """What a method would deliver; None, and the reason put into `missing`, when it cannot."""
        try:
            estimate = method.estimate(problem)
        except Exception as error:
            # A baseline's package may fail in its own ways; ours may not. A signal or a full disk is nobody's failure.
            serious = error.exit_code != ExitCode.USER if isinstance(error, BundleError) else method.kind != "baseline"
            if serious:
                raise
            missing[method.name] = str(error) or type(error).__name__
            logger.warning("method %s: %s", method.name, missing[method.name])
            return None
        if method.kind == "reference":
            return estimate
        difference = estimate.volume_hu - problem.degraded_hu
        delivered = apply_difference(problem.degraded_hu, difference, strength=1.0)
        return Estimate(delivered, estimate.deviation_hu)

    def _missing(self) -> dict[str, str]:
        """Methods without a row, or with rows of some series only, or of all and none of the phantom, and why."""
        series = len(self._keys())
        counts = {name: sum(row.method == name for row in self.rows) for name in self.missing}
        found = {
            name: f"of {counts[name]} of {series} series only: {reason}" if counts[name] else reason
            for name, reason in self.missing.items()
        }
        for name, reason in self.missing_on_phantom.items():
            if name not in found or reason not in found[name]:
                before = f"{found[name]}; " if name in found else ""
                found[name] = f"{before}not on the phantom: {reason}"
        return found

    def _parameters(self, on_phantom: Container[str]) -> dict[str, dict[str, dict[str, float]]]:
        """By series, and for the phantom, the parameters of the methods that have some and restored it."""
        done = {(row.series, row.method) for row in self.rows}
        done |= {(PHANTOM, method.name) for method in self.methods if method.name in on_phantom}
        found = {
            key: {method.name: method.parameters_of(key) for method in self.methods if (key, method.name) in done}
            for key in [*self._keys(), PHANTOM]
        }
        kept = {key: {name: values for name, values in own.items() if values} for key, own in found.items()}
        return {key: own for key, own in kept.items() if own}

    def _phantom(self) -> dict[str, Any]:
        if self.phantom_dose is None:
            return {}
        phantom = make_phantom(dose=self.phantom_dose, seed=self.seed)
        results = {
            "target": phantom.measure(phantom.problem.target_hu),
            "input": phantom.measure(phantom.problem.degraded_hu),
        }
        for method in self.methods:
            estimate = self._restore(method, phantom.problem, self.missing_on_phantom)
            if estimate is not None:
                results[method.name] = phantom.measure(estimate.volume_hu)
        return {"definitions": PHANTOM_METRICS, "dose": self.phantom_dose, "rows": results}

    def _draw(self, key: str, volumes: Mapping[str, np.ndarray], target: Target) -> None:
        if RESTORED in volumes:
            three = {name: volumes[name] for name in ("input", RESTORED, "target")}
            pictures.save_comparison(self.folder / f"comparison_{key}.png", three, title=f"series {key}")
        shown = {name: volumes[name] for name in _PICTURED if name in volumes}
        pictures.save_methods(self.folder / f"figure_{key}.png", shown, target.hu, title=f"series {key}")
        if target.squares:
            spectra = {name: target.spectrum(volume) for name, volume in volumes.items() if name != "autoencoder"}
            pictures.save_spectra(self.folder / f"noise_{key}.png", spectra, title=f"series {key}, soft tissue")

    def _keys(self) -> list[str]:
        return list(dict.fromkeys(row.series for row in self.rows))
