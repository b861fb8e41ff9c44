"""How long a 512 x 512 slice takes, ours beside others, in one interleaved run on one CPU thread.

    python scripts/bench_inference.py [--data_dir SERIES] [--exported_dir FOLDER] [--rounds 2]

Seconds are of processor time (`time.process_time`), which other programs on the machine hardly change; one thread, so
that on an idle machine they are seconds of the clock. Our rows are of one tile; `slices flowing` is how they go in a
study. Every method gets the same slices of HU, and runs twice before it is timed: the first runs after others pay for
memory that was given back, which a long study does once. RED-CNN has random weights: its time does not depend on them.
BM3D (`pip install bm3d`) is licensed for non-commercial use only.
"""

import argparse
import contextlib
import itertools
import platform
import resource
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bundle.networks.precision import Precision, prepare_cpu, resolve_precision
from bundle.networks.restorer import Restorer
from bundle.restoration.api import inference_parser
from bundle.restoration.inferer import RestorationInferer

SIZE = 512
DEPTH = 32  # slices of the tile that is timed
UNTIMED = 2  # runs before one that is timed
SPACING = torch.tensor([0.75, 0.75, 2.0])


class RedCNN(nn.Module):
    """Chen et al. 2017 (doi:10.1109/TMI.2017.2715284): 5 convolutions and 5 transposed ones, 96 filters of 5 x 5."""

    def __init__(self, filters: int = 96) -> None:
        super().__init__()
        widths = [1, *[filters] * 5]
        self.down = nn.ModuleList(nn.Conv2d(a, b, 5) for a, b in itertools.pairwise(widths))
        self.up = nn.ModuleList(nn.ConvTranspose2d(filters, b, 5) for b in [*[filters] * 4, 1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 1, H, W) to the same."""
        first = x
        kept = []
        for number, layer in enumerate(self.down):
            x = layer(x).relu()
            if number in (1, 3):
                kept.append(x)
        for number, layer in enumerate(self.up):
            x = layer(x)
            if number in (0, 2):
                x = x + kept.pop()
            elif number == 4:
                x = x + first
            x = x.relu()
        return x


def slices(data_dir: Path | None, count: int) -> tuple[np.ndarray, str]:
    """HU (512, 512, count): from the middle of a real series, or a noisy phantom."""
    if data_dir is not None:
        from bundle.dicom.index import read_volume

        volume = read_volume(str(data_dir))
        first = (volume.shape[2] - count) // 2
        return _as_read([volume.slice_hu(k) for k in range(first, first + count)]), data_dir.name
    rows, columns = np.mgrid[-1:1:512j, -1:1:512j]
    body = np.where(rows**2 + (columns / 0.7) ** 2 < 0.8, 50.0, -1000.0).astype(np.float32)
    noise = np.random.default_rng(0).normal(0, 20, (SIZE, SIZE, count)).astype(np.float32)
    return _as_read([body + noise[:, :, k] for k in range(count)]), "phantom"


def _as_read(slices_hu: list[np.ndarray]) -> np.ndarray:
    """(H, W, D), the values of a slice together in memory, as the reader's volumes lie."""
    return np.moveaxis(np.stack(slices_hu), 0, -1)


def ours(network: Restorer, inferer: RestorationInferer, steps: int) -> Callable[[np.ndarray], None]:
    """A restoration by the inferer as `run inference` does it, air included."""
    chosen = inferer.with_steps(steps)

    def run(volume_hu: np.ndarray) -> None:
        for _ in chosen.pieces(torch.from_numpy(volume_hu), network, spacing_mm=SPACING):
            pass

    return run


def red_cnn(precision: Precision) -> Callable[[np.ndarray], None]:
    """Slice by slice, in the same number format and memory layout as ours."""
    network = RedCNN().eval().to(memory_format=torch.channels_last)

    def run(volume_hu: np.ndarray) -> None:
        with torch.inference_mode(), precision.autocast():
            for k in range(volume_hu.shape[2]):
                x = torch.from_numpy(np.ascontiguousarray(volume_hu[:, :, k]))[None, None] / 1000
                network(x.to(memory_format=torch.channels_last))

    return run


def non_local_means(volume_hu: np.ndarray) -> None:
    """Fast 3D mode with its default patch and a search of 7 voxels."""
    from skimage.restoration import denoise_nl_means

    denoise_nl_means(volume_hu, patch_size=5, patch_distance=3, h=16.0, sigma=20.0, fast_mode=True)


def bm3d_slices(volume_hu: np.ndarray) -> None:
    """BM3D with its default profile, slice by slice."""
    import bm3d

    for k in range(volume_hu.shape[2]):
        bm3d.bm3d(np.ascontiguousarray(volume_hu[:, :, k]), sigma_psd=20.0)


def methods(
    exported_dir: Path | None,
) -> tuple[dict[str, tuple[Callable[[np.ndarray], None], int]], Restorer, RestorationInferer]:
    """Name to (function, slices per measurement), our network, and its inferer."""
    settings = {"device": "cpu", "skip_air": False, "tile_size": [SIZE, SIZE, DEPTH]}
    parser = inference_parser(**settings, slices_at_once=0)
    parser.get_parsed_content("weights_digest")
    network: Restorer = parser.get_parsed_content("network_def").eval()
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    inferer: RestorationInferer = parser.get_parsed_content("inferer")
    flowing: RestorationInferer = inference_parser(**settings).get_parsed_content("inferer")
    precision = resolve_precision("auto", "cpu")
    name = str(precision.dtype or torch.float32).removeprefix("torch.")
    found: dict[str, tuple[Callable[[np.ndarray], None], int]] = {
        f"small, 1 step, {name}": (ours(network, inferer, 1), DEPTH),
        f"small, 1 step, {name}, slices flowing": (ours(network, flowing, 1), DEPTH),
        f"small, 4 steps, {name}": (ours(network, inferer, 4), DEPTH),
        f"small, 50 steps, {name}": (ours(network, inferer, 50), 1),
        f"RED-CNN, {name}": (red_cnn(precision), 1),
        "non-local means 3D (skimage)": (non_local_means, 4),
    }
    with contextlib.suppress(ImportError):
        import bm3d  # noqa: F401

        found["BM3D"] = (bm3d_slices, 1)
    in_formats = {
        other: inference_parser(**settings, slices_at_once=0, mixed_precision=mode).get_parsed_content("inferer")
        for other, mode in (("float32", "off"), ("bfloat16", "bf16"))
    }
    for other, inferer_of_format in in_formats.items():
        if other != name and (other == "float32" or torch.ops.mkldnn._is_mkldnn_bf16_supported()):
            found[f"small, 1 step, {other}"] = (ours(network, inferer_of_format, 1), DEPTH)
            found[f"RED-CNN, {other}"] = (red_cnn(inferer_of_format.precision), 1)
    if exported_dir is not None:
        from bundle.networks.exported import with_exported

        exported = ours(with_exported(network, exported_dir), in_formats["float32"], 1)
        found["small, 1 step, ONNX Runtime float32"] = (exported, DEPTH)
    return found, network, inferer


def profile(network: Restorer, run: Callable[[np.ndarray], None], volume_hu: np.ndarray) -> dict[str, float]:
    """Seconds in each network during one run, after untimed ones, and the rest."""
    for _ in range(UNTIMED):
        run(volume_hu)
    spent: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def timed(owner: nn.Module, attribute: str, name: str) -> Iterator[None]:
        inner = getattr(owner, attribute)

        def outer(*arguments: object, **named: object) -> object:
            started = time.process_time()
            result = inner(*arguments, **named)
            spent[name] += time.process_time() - started
            return result

        setattr(owner, attribute, outer)
        try:
            yield
        finally:
            delattr(owner, attribute)

    with (
        timed(network.autoencoder, "encode", "encoder"),
        timed(network.autoencoder, "decode_difference", "decoder"),
        timed(network.denoiser, "forward", "denoiser"),
        timed(network.refiner, "forward", "refiner"),
    ):
        started = time.process_time()
        run(volume_hu)
        total = time.process_time() - started
    return {**spent, "noise estimate, units, tiles": total - sum(spent.values())}


def memory(exported_dir: Path | None) -> list[tuple[str, float]]:
    """Peak resident memory in GB: of the loaded process, then of ever larger tiles of one restoration each.

    With an export it is ONNX Runtime's; its last tile comes twice.
    """

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

    _, network, inferer = methods(None)
    sizes = [(256, 8), (256, 24), (512, 8), (512, 16), (512, 24), (512, 32), (512, 40)]
    if exported_dir is not None:
        from bundle.networks.exported import with_exported

        network, sizes = with_exported(network, exported_dir), [*sizes, sizes[-1]]
    found = [("network loaded", peak())]
    for size, depth in sizes:
        ours(network, inferer, 1)(slices(None, depth)[0][:size, :size])
        found.append((f"tile {size} x {size} x {depth}", peak()))
    return found


def measure(
    found: dict[str, tuple[Callable[[np.ndarray], None], int]], volume_hu: np.ndarray, *, rounds: int
) -> dict[str, list[float]]:
    """Seconds of processor time per slice of every method, one after the other, round after round."""
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(rounds):
        for name, (run, count) in found.items():
            given = np.ascontiguousarray(volume_hu[:, :, :count])
            for _ in range(UNTIMED):
                run(given)
            started = time.process_time()
            run(given)
            seconds[name].append((time.process_time() - started) / count)
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, help="folder of one series")
    parser.add_argument("--exported_dir", type=Path, help="of `python -m bundle export`; adds the ONNX row")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--memory", action="store_true", help="measure memory by tile size instead of time")
    arguments = parser.parse_args()
    prepare_cpu(threads=1)
    if arguments.memory:
        print("| peak memory | GB |\n|---|--:|")
        print("\n".join(f"| {name} | {value:.2f} |" for name, value in memory(arguments.exported_dir)))
        return 0
    volume_hu, what = slices(arguments.data_dir, DEPTH)
    found, network, _ = methods(arguments.exported_dir)
    seconds = measure(found, volume_hu, rounds=arguments.rounds)
    best = {name: min(values) for name, values in seconds.items()}
    reference = next(iter(best))
    print(
        f"512 x 512 slices of {what}; {platform.machine()} with {torch.backends.cpu.get_cpu_capability()}, 1 thread, "
        f"torch {torch.__version__}"
    )
    print(f"best of {arguments.rounds} interleaved rounds\n")
    print("| method | s per slice | times our 1 step |\n|---|--:|--:|")
    for name, value in sorted(best.items(), key=lambda item: item[1]):
        print(f"| {name} | {value:.2f} | {value / best[reference]:.1f} |")
    parts = profile(network, found[reference][0], volume_hu)
    total = sum(parts.values())
    print("\n| where the time of 1 step goes | s per slice | share |\n|---|--:|--:|")
    for name, value in sorted(parts.items(), key=lambda item: -item[1]):
        print(f"| {name} | {value / volume_hu.shape[2]:.3f} | {value / total:.0%} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
