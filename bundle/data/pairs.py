"""Which series belong together as a poor and a good one: by geometry, or by a naming rule."""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bundle.data.case import Case
from bundle.dicom.elements import text
from bundle.dicom.index import Refusal, Series
from bundle.errors import BundleError

THICK_THIN = "thick_thin"
_THICKER = 1.5  # times the thin spacing
_LEAST_OVERLAP = 0.5  # of the thick series' length
_PARALLEL = 0.999
ARROW = "->"


def check_pairs_option(pairs: str | None) -> str | None:
    """Return `pairs`; None for 'none'.

    Raises:
        BundleError: when it is no known word and no rule.
    """
    if pairs is None or pairs in ("none", "null", ""):
        return None
    if pairs != THICK_THIN:
        _patterns(pairs)
    return pairs


def pair_thick_thin(series: Sequence[Series]) -> tuple[list[tuple[Series, Series]], list[Refusal]]:
    """Pairs (thin, thick) of one study: same frame of reference, parallel slices that overlap, one at least 1.5 times
    as far apart as the other; where several thin ones fit, the one of the same kernel, most overlap, finest spacing.

    Returns:
        The pairs, and each series that is in none, with the reason.
    """
    pairs = []
    for thick in series:
        thin = [other for other in series if _is_thin_of(other, thick)]
        if thin:
            pairs.append((max(thin, key=lambda one: _fitness(one, thick)), thick))
    used = {one.key for pair in pairs for one in pair}
    refused = [
        Refusal(one.key, "no thick or thin partner in its study", one.key, "leave out --pairs to use it alone")
        for one in series
        if one.key not in used
    ]
    return pairs, refused


def pair_by_rule(cases: Sequence[Case], rule: str) -> tuple[list[Case], list[Refusal]]:
    """Good cases with their poor partners, by a rule such as '*_b70f -> *' or '*/low -> */full' on their folders.

    What stands for * in the poor one's folder (or NIfTI file) is put into the good one's.

    Returns:
        The pairs, and each case that matched but has no partner, with the reason.
    """
    poor_pattern, good = _patterns(rule)
    by_label = {_plain(case.label): case for case in cases}
    pairs, refused, partners = [], [], set()
    for case in cases:
        match = poor_pattern.fullmatch(_plain(case.label))
        if match is None:
            continue
        partner = by_label.get(good.replace("*", match.group(1)))
        if partner is None or partner.key == case.key:
            refused.append(Refusal(case.key, "has no good partner by the rule of --pairs", case.key, "check the rule"))
        elif partner.patient_key != case.patient_key and not _is_nifti(case):
            refused.append(
                Refusal(case.key, "its partner by --pairs is of another patient", case.key, "check the data")
            )
        else:
            pairs.append(replace(partner, poor_files=case.files))
            partners |= {case.key, partner.key}
    told = {refusal.key for refusal in refused}
    refused += [
        Refusal(case.key, "has no poor partner by the rule of --pairs", case.key, "check the rule")
        for case in cases
        if case.key not in partners | told
    ]
    return pairs, refused


def _patterns(rule: str) -> tuple[re.Pattern[str], str]:
    sides = [side.strip() for side in str(rule).split(ARROW)]
    if len(sides) != 2 or any(side.count("*") != 1 for side in sides):
        raise BundleError(
            f"pairs '{rule}' is neither {THICK_THIN} nor a rule",
            hint="write 'POOR -> GOOD' with one * on each side, e.g. '*_b70f -> *'",
        )
    before, after = sides[0].split("*")
    return re.compile(f"{re.escape(before)}(.+){re.escape(after)}"), sides[1]


def _plain(label: str) -> str:
    return re.sub(r"\.nii(\.gz)?$", "", label)


def _is_nifti(case: Case) -> bool:
    return case.label.endswith((".nii", ".nii.gz"))


def _is_thin_of(thin: Series, thick: Series) -> bool:
    same = all(
        text(thin.headers[0], name) == text(thick.headers[0], name)
        for name in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID")
    )
    if not same or thick.spacing_mm[2] < _THICKER * thin.spacing_mm[2]:
        return False
    normals = [_normal(one) for one in (thin, thick)]
    return bool(normals[0] @ normals[1] > _PARALLEL) and _overlap(thin, thick) >= _LEAST_OVERLAP


def _fitness(thin: Series, thick: Series) -> tuple[bool, float, float, str]:
    return (thin.kernel == thick.kernel, round(_overlap(thin, thick), 2), -thin.spacing_mm[2], thin.key)


def _overlap(thin: Series, thick: Series) -> float:
    """Share of the thick series' length along the normal that the thin one covers."""
    normal = _normal(thick)
    ends = []
    for one in (thin, thick):
        place, step = float(one.affine[:3, 3] @ normal), one.spacing_mm[2]
        ends.append((place - step / 2, place + (one.shape[2] - 0.5) * step))
    common = min(ends[0][1], ends[1][1]) - max(ends[0][0], ends[1][0])
    return max(common, 0.0) / (ends[1][1] - ends[1][0])


def _normal(series: Series) -> np.ndarray:
    normal = np.cross(series.affine[:3, 0], series.affine[:3, 1])
    return np.asarray(normal / np.linalg.norm(normal))
