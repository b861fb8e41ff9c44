"""A Restorer whose four networks are run by ONNX Runtime from an export (`python -m bundle export`)."""

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bundle.errors import BundleError
from bundle.files import file_digest
from bundle.networks.export import MANIFEST, SCHEMA, example, require_onnx
from bundle.networks.restorer import Restorer


class OnnxPart(nn.Module):
    """One exported network; tensors go through the host's memory.

    Args:
        path: the ONNX file.
        device: where it runs: 'cuda' takes ONNX Runtime's CUDA provider.
        provider: another execution provider of ONNX Runtime, such as TensorrtExecutionProvider; the device's own takes
            what that one cannot run.

    Raises:
        BundleError: when the file cannot be read, or ONNX Runtime was built without the provider.
    """

    def __init__(self, path: Path, *, device: torch.device | str = "cpu", provider: str | None = None) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        # Its arena keeps what each of the four networks ever needed, and grew from tile to tile (6, then 11 GB).
        options.enable_cpu_mem_arena = False
        plain = "CUDAExecutionProvider" if torch.device(device).type == "cuda" else "CPUExecutionProvider"
        providers = [plain] if provider in (None, plain) else [provider, plain]
        available = onnxruntime.get_available_providers()
        if missing := [one for one in providers if one not in available]:
            hint = "install onnxruntime-gpu, or use --device cpu"
            if missing == [provider] and provider != plain:
                hint = f"exported_provider can be {', '.join(available)}"
            raise BundleError(f"this ONNX Runtime has no {missing[0]}", hint=hint)
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=providers)
        except Exception as error:  # its errors share no class
            raise BundleError(f"'{path.name}' in exported_dir cannot be read", hint="export again") from error
        self.names = [one.name for one in self.session.get_inputs()]

    def forward(self, *inputs: torch.Tensor | None) -> torch.Tensor:
        """Return the network's output for inputs in the order of its signature, float32.

        A network that makes no use of its last inputs (`full` of the context) was exported without them.
        """
        given = [one for one in inputs if one is not None][: len(self.names)]
        arrays = [np.ascontiguousarray(one.detach().float().cpu().numpy()) for one in given]
        output = self.session.run(None, dict(zip(self.names, arrays, strict=True)))[0]
        return torch.from_numpy(output).to(given[0].device)


class ExportedAutoencoder(nn.Module):
    """Encoder and decoder of an export behind the autoencoder's interface."""

    def __init__(self, encoder: OnnxPart, decoder: OnnxPart, *, latent_channels: int, factor: int) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.latent_channels, self.factor = latent_channels, factor

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W, D) in network units to the whitened latent."""
        return self.encoder(x)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Whitened latent to network units (B, 1, H, W, D)."""
        return self.decoder(z)

    def decode_difference(self, z: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """decode(z) - decode(other)."""
        decoded, base = self.decode(torch.cat([z, other])).chunk(2)
        return decoded - base


class ExportedPart(OnnxPart):
    """An exported denoiser or refiner, which the Restorer asks for its `multiple`."""

    def __init__(self, path: Path, *, multiple: int, device: torch.device | str, provider: str | None) -> None:
        super().__init__(path, device=device, provider=provider)
        self.multiple = multiple


def with_exported(
    restorer: Restorer,
    folder: str | Path | None,
    *,
    weights_digest: str | None = None,
    device: torch.device | str = "cpu",
    provider: str | None = None,
) -> Restorer:
    """Return a copy of `restorer` whose networks are run by ONNX Runtime; without a folder, `restorer` itself.

    Args:
        restorer: built as the exported one was.
        folder: what `python -m bundle export` wrote.
        weights_digest: SHA-256 of the weights in use; None does not compare.
        device: where the networks run.
        provider: as of OnnxPart.

    Raises:
        BundleError: when the folder holds no export, a damaged one, or one of other weights or another network.
    """
    if not folder:
        return restorer
    require_onnx()
    folder = Path(folder)
    manifest = _manifest(folder)
    _require_same(restorer, manifest, weights_digest)
    for name, digest in manifest["sha256"].items():
        if name.endswith(".onnx") and (not (folder / name).is_file() or file_digest(folder / name) != digest):
            raise BundleError(f"'{name}' in exported_dir is missing or damaged", hint="export again")
    engine = copy.copy(restorer)
    engine._modules = dict(restorer._modules)  # the original keeps its own networks
    factor, channels = restorer.autoencoder.factor, restorer.autoencoder.latent_channels
    given: dict[str, Any] = {"device": device, "provider": provider}
    encoder, decoder = (OnnxPart(folder / f"{name}.onnx", **given) for name in ("encoder", "decoder"))
    engine._modules["autoencoder"] = ExportedAutoencoder(encoder, decoder, latent_channels=channels, factor=factor)
    for name in ("denoiser", "refiner"):
        multiple = getattr(restorer, name).multiple
        engine._modules[name] = ExportedPart(folder / f"{name}.onnx", multiple=multiple, **given)
    engine.slices_flow = False  # whole networks are run at once
    return engine.eval()


@torch.no_grad()
def largest_difference_hu(restorer: Restorer, engine: Restorer) -> float:
    """Largest difference of two Restorers, HU, over one-step and two-step restorations at shapes never exported."""
    pairs = [(_restored(restorer, *given), _restored(engine, *given)) for given in _examples(restorer)]
    return max(float((ours - theirs).abs().max()) for ours, theirs in pairs) * restorer.linear.hu_per_unit


@torch.no_grad()
def largest_change_hu(restorer: Restorer) -> float:
    """Largest change by the restorations that `largest_difference_hu` compares, HU."""
    changes = [
        _restored(restorer, x, noise) - restorer.linear.from_hu(restorer.units.to_hu(x))
        for x, noise in _examples(restorer)
    ]
    return max(float(change.abs().max()) for change in changes) * restorer.linear.hu_per_unit


def _examples(restorer: Restorer) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Seeded inputs (B, C, H, W, D) in network units, and latent noise."""
    for seed, blocks in enumerate([(1, 4, 3, 1), (3, 2, 5, 4)]):
        x = example(restorer, blocks, seed=seed + 1)
        yield x, torch.randn(restorer.latent_shape(x), generator=torch.Generator().manual_seed(seed)).to(x)


def _restored(network: Restorer, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """One-step and two-step restorations (2, B, 1, H, W, D) in network units."""
    return torch.stack([network(x), network.sample(x, steps=2, noise=lambda _: noise)])


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise BundleError(
            f"exported_dir '{folder.name}' holds no export", hint="make one with: python -m bundle export"
        ) from error
    if manifest.get("schema") != SCHEMA or "onnx" not in manifest.get("formats", ()):
        raise BundleError(f"exported_dir '{folder.name}' holds no ONNX export of this version", hint="export again")
    return dict(manifest)


def _require_same(restorer: Restorer, manifest: Mapping[str, Any], weights_digest: str | None) -> None:
    if weights_digest is not None and manifest.get("weights_sha256") != weights_digest:
        raise BundleError("exported_dir was exported from other weights", hint="export again, or name those weights")
    sizes = {
        "multiple": restorer.multiple,
        "latent_channels": restorer.autoencoder.latent_channels,
        "factor": restorer.autoencoder.factor,
    }
    if any(manifest.get(name) != value for name, value in sizes.items()):
        raise BundleError("exported_dir is of another network", hint="check preset")
