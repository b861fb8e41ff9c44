"""The four networks of a Restorer as files: `torch.export` programs and ONNX, for any number of tiles and any size.

What joins them (units, noise, the diffusion's steps) is arithmetic and stays in Python, so that one export serves
every number of steps and every sampler. `bundle.networks.exported` puts the files back in place of the networks.
"""

import json
import logging
import platform
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bundle.errors import BundleError
from bundle.files import file_digest, whole_folder, write_json
from bundle.networks.restorer import Restorer

FORMATS = ("torch", "onnx")
MANIFEST = "export.json"
SCHEMA = 1
_MOST_TILES, _MOST_SLICES, _MOST_BLOCKS = 4096, 65536, 4096


class Encoder(nn.Module):
    """Network units (B, C, H, W, D) to the whitened latent (B, L, h, w, D)."""

    def __init__(self, restorer: Restorer) -> None:
        super().__init__()
        self.autoencoder = restorer.autoencoder

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the latent."""
        return self.autoencoder.encode(x)


class Decoder(nn.Module):
    """Whitened latent (B, L, h, w, D) to network units (B, 1, H, W, D)."""

    def __init__(self, restorer: Restorer) -> None:
        super().__init__()
        self.autoencoder = restorer.autoencoder

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Return the image."""
        return self.autoencoder.decode(z)


@dataclass(frozen=True)
class Part:
    """One network to export.

    Attributes:
        network: the module.
        inputs: examples, by the names that the ONNX inputs get.
        shapes: which of their axes are dynamic, for `torch.export`; None for an input that is None.
    """

    network: nn.Module
    inputs: Mapping[str, torch.Tensor]
    shapes: Sequence[Mapping[int, Any] | None]


def parts_of(restorer: Restorer) -> dict[str, Part]:
    """The networks of a Restorer with examples and dynamic axes: tiles B, slices D, and rows and columns in blocks."""
    from torch.export import Dim

    tiles, slices = Dim("tiles", min=1, max=_MOST_TILES), Dim("slices", min=1, max=_MOST_SLICES)
    rows, columns = (Dim(name, min=1, max=_MOST_BLOCKS) for name in ("rows", "columns"))
    pixels, latent = restorer.multiple, restorer.multiple // restorer.autoencoder.factor
    image_axes = {0: tiles, 2: pixels * rows, 3: pixels * columns, 4: slices}
    latent_axes = {0: tiles, 2: latent * rows, 3: latent * columns, 4: slices}
    slice_axes = {0: tiles, 4: slices}

    x = example(restorer, (2, 3, 2, 5))
    z = restorer.autoencoder.encode(x)
    image, noise = x[:, :1], torch.full((2, 1, 1, 1, 5), 0.02).to(x)
    # No tensor twice: torch.export would take the two inputs for one.
    denoiser = {"z_t": 0.5 * z, "degraded": z, "t": torch.full((2,), 0.5).to(x)}
    denoiser_axes: list[Mapping[int, Any] | None] = [latent_axes, latent_axes, {0: tiles}]
    if restorer.denoiser.context_channels:
        denoiser["context"] = torch.zeros(2, restorer.denoiser.context_channels, 1, 1, 5).to(x)
        denoiser_axes.append(slice_axes)
    else:
        denoiser_axes.append(None)
    refiner = {"base": image, "restored": 0.5 * image, "noise": noise}
    return {
        "encoder": Part(Encoder(restorer), {"x": x}, [image_axes]),
        "denoiser": Part(restorer.denoiser, denoiser, denoiser_axes),
        "decoder": Part(Decoder(restorer), {"z": z}, [latent_axes]),
        "refiner": Part(restorer.refiner, refiner, [image_axes, image_axes, slice_axes]),
    }


def example(restorer: Restorer, blocks: tuple[int, int, int, int], *, seed: int = 0) -> torch.Tensor:
    """Soft tissue in air with noise, network units (B, C, H, W, D), by B, rows and columns in blocks, and D."""
    tiles, rows, columns, slices = blocks
    device = next(restorer.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    volume_hu = torch.full((tiles, 1, rows * restorer.multiple, columns * restorer.multiple, slices), -1000.0)
    volume_hu[:, :, 2:, 3:] = 50.0
    volume_hu += 25.0 * torch.randn(volume_hu.shape, generator=generator)
    return restorer.units.from_hu(volume_hu).to(device)


@torch.no_grad()
def export_parts(
    restorer: Restorer, folder: Path, *, formats: Sequence[str], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Write every part in every format, and the manifest; the folder appears whole or not at all.

    Args:
        restorer: on the CPU, in float32.
        folder: NAME.pt2 and NAME.onnx for each part, and export.json.
        formats: some of FORMATS.
        about: goes into the manifest: what the network is (preset, weights ...).

    Returns:
        The manifest.

    Raises:
        BundleError: for an unknown format, a missing package, or a folder that holds anything but an export.
    """
    _require_free(folder)
    for name in formats:
        if name not in FORMATS:
            raise BundleError(f"format '{name}' is unknown", hint=f"use {' or '.join(FORMATS)}")
    if "onnx" in formats:
        require_onnx()
    restorer.eval()
    with whole_folder(folder) as temporary:
        for name, part in parts_of(restorer).items():
            program = _program(part)
            if "torch" in formats:
                torch.export.save(program, temporary / f"{name}.pt2")
            if "onnx" in formats:
                _write_onnx(program, temporary / f"{name}.onnx", list(part.inputs))
        files = {path.name: file_digest(path) for path in sorted(temporary.iterdir())}
        manifest = {
            "schema": SCHEMA,
            **about,
            "formats": list(formats),
            "dtype": "float32",
            "multiple": restorer.multiple,
            "latent_channels": restorer.autoencoder.latent_channels,
            "factor": restorer.autoencoder.factor,
            "torch_version": torch.__version__,
            "python_version": platform.python_version(),
            "sha256": files,
        }
        write_json(temporary / MANIFEST, manifest)
    return manifest


def _require_free(folder: Path) -> None:
    """An export replaces its folder: only a former export may be there."""
    if not folder.exists():
        return
    try:
        names = {path.name for path in folder.iterdir()}
        if not names or names <= {MANIFEST, *json.loads((folder / MANIFEST).read_text())["sha256"]}:
            return
    except (OSError, ValueError, KeyError, TypeError):
        pass  # a file in its place, or no export of ours
    raise BundleError(f"'{folder.name}' holds other files than an export's", hint="name a new or an empty folder")


@torch.no_grad()
def largest_program_difference(restorer: Restorer, folder: Path) -> float:
    """Largest difference of an export's programs, read back, from the networks, at shapes never exported.

    In units of the output's own standard deviation, over all four parts.
    """
    largest = 0.0
    for name, part in parts_of(restorer).items():
        program = torch.export.load(folder / f"{name}.pt2").module()
        given = [torch.cat([x, 0.9 * x]) for x in part.inputs.values()]
        given = [x.repeat_interleave(2, dim=-1) if x.ndim > 1 else x for x in given]
        missing = (None,) * (len(part.shapes) - len(given))
        expected, found = part.network(*given, *missing), program(*given, *missing)
        largest = max(largest, float((expected - found).abs().max() / expected.std().clamp_min(1.0e-6)))
    return largest


def require_onnx() -> None:
    """Refuse to go on without the packages that write and run ONNX.

    Raises:
        BundleError: names the missing package.
    """
    import importlib.util

    for name in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise BundleError(f"package '{name}' is not installed", hint="pip install 'ct-enhance[onnx]'")


def _program(part: Part) -> torch.export.ExportedProgram:
    shapes = tuple(part.shapes)
    missing = (None,) * (len(shapes) - len(part.inputs))  # a denoiser without context is given None
    arguments = (*part.inputs.values(), *missing)
    return torch.export.export(part.network.eval(), arguments, dynamic_shapes=shapes, strict=False)


def _write_onnx(program: torch.export.ExportedProgram, path: Path, names: list[str]) -> None:
    # The exporter reports on itself at length; what counts is checked afterwards.
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = registration.level
    registration.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                program,
                f=path,
                dynamo=True,
                external_data=False,
                optimize=True,
                verbose=False,
                input_names=names,
                output_names=["output"],
            )
    finally:
        registration.setLevel(before)
