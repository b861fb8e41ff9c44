"""Tables of an evaluation in Markdown: python scripts/result_tables.py RESULTS/metrics.json [KEY=NAME ...]

Methods are rows, series columns, with their mean. KEY=NAME gives a series key a name. models/README.md shows the tables
of the evaluations that are kept in docs/results.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TABLES = {
    "rmse_hu_body": ("RMSE in the body, HU", "{:.2f}"),
    "psnr_1000": ("PSNR, mean over slices, [-1000, 1000] HU, dB", "{:.2f}"),
    "ssim_1000": ("SSIM, mean over slices, [-1000, 1000] HU", "{:.4f}"),
    "nps_distance": ("Noise power spectrum, distance to the target's (0 is the same)", "{:.2f}"),
    "residual_structure": ("Share of the anatomy's detail in what was removed", "{:.4f}"),
    "edge_inner_percent": ("10-90 % width of inner edges against the target's, %", "{:+.1f}"),
    "coverage_1_percent": ("Voxels whose target lies within one calibrated deviation, % (normal: 68.3)", "{:.1f}"),
    "coverage_2_percent": ("Within two, % (normal: 95.4)", "{:.1f}"),
}
PHANTOM = {
    "detectability": ("d' of the discs", "{:.1f}"),
    "transfer50_100_per_mm": ("rod of 100 HU: 50 % at, 1/mm", "{:.2f}"),
    "transfer10_100_per_mm": ("10 % at", "{:.2f}"),
    "transfer50_400_per_mm": ("rod of 400 HU: 50 % at, 1/mm", "{:.2f}"),
    "transfer10_400_per_mm": ("10 % at", "{:.2f}"),
}
# The held-out series of this bundle, by the digest that names them.
NAMES = {
    "27128374e88dbd4d": "covidctmd_cap002 (lung base, liver dome)",
    "50fcbd01c567a9f8": "rider_pilot_0117 (chest)",
    "cfc5b77992a3c634": "crlm_1004 (abdomen)",
    "fb4a4613a0ad7b2e": "ge_head_tilt (head)",
}


def tables(metrics: Mapping[str, Any], names: Mapping[str, str] = NAMES) -> str:
    """All tables of a metrics.json that have something in them."""
    found = [table(metrics, key, names) for key in measured(metrics)]
    return "\n\n".join([*found, phantom(metrics)] if metrics.get("phantom") else found)


def phantom(metrics: Mapping[str, Any]) -> str:
    """What was measured on the phantom: a column for each measure."""
    lines = [
        "Discs of low contrast and rods on a phantom:",
        "",
        "| method | " + " | ".join(heading for heading, _ in PHANTOM.values()) + " |",
        "|---|" + "--:|" * len(PHANTOM),
    ]
    for method, values in metrics["phantom"]["rows"].items():
        found = [(values[key], form) for key, (_, form) in PHANTOM.items()]
        cells = ["-" if value is None else form.format(value) for value, form in found]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def measured(metrics: Mapping[str, Any]) -> list[str]:
    """Which tables a metrics.json has values for."""
    return [key for key in TABLES if any(row.get(key) is not None for row in metrics["rows"])]


def table(metrics: Mapping[str, Any], key: str, names: Mapping[str, str] = NAMES) -> str:
    """One table: heading, methods in their order, a column for each series and the mean; no value is a dash."""
    heading, form = TABLES[key]
    rows: dict[str, dict[str, float | None]] = {}
    for row in metrics["rows"]:
        rows.setdefault(row["method"], {})[row["series"]] = row.get(key)
    order = [*names, *(row["series"] for row in metrics["rows"])]
    series = sorted({row["series"] for row in metrics["rows"]}, key=order.index)
    lines = [
        f"{heading}:",
        "",
        "| method | " + " | ".join(names.get(name, name) for name in series) + " | mean |",
        "|---|" + "--:|" * (len(series) + 1),
    ]
    for method, values in rows.items():
        if method == "target":  # nothing but zeros and ones
            continue
        found = [values.get(name) for name in series]
        known = [value for value in found if value is not None]
        if not known:
            continue
        mean = sum(known) / len(known) if len(known) == len(series) else None
        cells = ["-" if value is None else form.format(value) for value in [*found, mean]]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("metrics", type=Path, help="metrics.json of run evaluation")
    parser.add_argument("names", nargs="*", help="KEY=NAME of a series")
    arguments = parser.parse_args()
    names = NAMES | dict(pair.split("=", 1) for pair in arguments.names)
    print(tables(json.loads(arguments.metrics.read_text()), names))


if __name__ == "__main__":
    main()
