"""Time and money for many studies, calculated from measured unit costs and stated assumptions: docs/scaling.md.

Run from the checkout: `python scripts/scaling_table.py`. Everything that is assumed stands in the constants below.
"""

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from bundle.networks.presets import build_restorer

STUDIES = (206, 10_000, 1_000_000)
# Assumed: a study is one series of so many 512 x 512 slices.
SLICES_PER_STUDY = 300
# Measured on 2 CPU cores, reading and writing included: 300 slices in 63 s (docs/performance.md).
CPU_SECONDS_PER_SLICE = 63 / 300
# Measured, CPU seconds of one core: docs/dicom_benchmark.md (98 slices in 1.02 s), doubled for checking and writing.
DICOM_CORE_SECONDS_PER_SLICE = 2 * 1.02 / 98
# Assumed: cores beside each GPU that read and write.
CORES_PER_GPU = 8
# Assumed: share of the data sheet's peak that 3D convolutions with few channels reach.
SHARE_OF_PEAK = 0.10
# Counted as one piece; slices flow, and none is computed twice.
TILE = (1, 1, 512, 512, 16)


@dataclass(frozen=True)
class Gpu:
    """A GPU by its data sheet (dense 16-bit peak) and an assumed price."""

    name: str
    peak_tflops: float
    dollars_per_hour: float


GPUS = (Gpu("V100", 112, 1.5), Gpu("A100", 312, 2.5), Gpu("H100", 989, 4.0))


def flops_per_slice(preset: str) -> float:
    """Floating-point operations of the one-step restoration of a 512 x 512 slice; counted, nothing is computed."""
    network = build_restorer(preset).eval()
    with torch.no_grad():
        only_basis = network.autoencoder.only_changes_basis()  # as with the shipped weights; seen by their values
    network.to("meta")
    network.autoencoder.only_changes_basis = lambda: only_basis  # type: ignore[method-assign]
    channels = network.units.channels
    image = torch.empty(1, channels, *TILE[2:], device="meta")
    spacing, noise = torch.ones(1, 3, device="meta"), torch.ones(1, TILE[-1], device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(image, spacing, noise)
    return counter.get_total_flops() / TILE[-1]


def gpu_seconds_per_study(flops: float, gpu: Gpu) -> float:
    """Whichever is slower: the network on the GPU, or reading and writing on the cores beside it."""
    network = SLICES_PER_STUDY * flops / (gpu.peak_tflops * 1e12 * SHARE_OF_PEAK)
    files = SLICES_PER_STUDY * DICOM_CORE_SECONDS_PER_SLICE / CORES_PER_GPU
    return max(network, files)


def spoken(hours: float) -> str:
    """Hours as a person reads them."""
    if hours < 1:
        return f"{60 * hours:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:,.0f} d"


def table(flops: float) -> str:
    """The table of the page, in Markdown."""
    lines = ["| studies | 2 CPU cores | " + " | ".join(f"one {gpu.name}" for gpu in GPUS) + " |"]
    lines.append("|--:|--:|" + "--:|" * len(GPUS))
    for studies in STUDIES:
        cells = [spoken(studies * SLICES_PER_STUDY * CPU_SECONDS_PER_SLICE / 3600)]
        for gpu in GPUS:
            hours = studies * gpu_seconds_per_study(flops, gpu) / 3600
            dollars = hours * gpu.dollars_per_hour
            cells.append(f"{spoken(hours)}, {dollars:,.{2 if dollars < 10 else 0}f} USD")
        lines.append(f"| {studies:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the counted operations and the table."""
    flops = flops_per_slice("small")
    print(f"small: {flops / 1e9:.0f} GFLOP for a 512 x 512 slice")
    for gpu in GPUS:
        print(f"{gpu.name}: {gpu_seconds_per_study(flops, gpu):.2f} s for a study")
    print(table(flops))


if __name__ == "__main__":
    main()
