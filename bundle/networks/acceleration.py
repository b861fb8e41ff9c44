"""How networks are run, without a change of what they compute: compilation, CUDA graphs, memory format."""

import copy
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bundle.configuration import flag
from bundle.errors import BundleError
from bundle.networks.exported import ExportedAutoencoder
from bundle.networks.restorer import Restorer

logger = logging.getLogger(__name__)

_Function = Callable[..., torch.Tensor]


def named_backend(compile: bool | str) -> str | None:
    """The compiler that the key `compile` names: None for false, 'inductor' for true, else a backend of torch.compile.

    Raises:
        BundleError: when it is neither true nor false, nor a backend.
    """
    if isinstance(compile, str) and compile.lower() not in ("true", "false"):
        known = torch.compiler.list_backends(exclude_tags=())
        if compile not in known:
            raise BundleError(f"compile '{compile}' is unknown", hint=f"use true, false, or one of {', '.join(known)}")
        return compile
    return "inductor" if flag(compile) else None


def usable_backend(compile: bool | str, device: torch.device | str) -> str | None:
    """`named_backend`, or None with a warning where it cannot compile for `device`.

    A CPU needs a C++ compiler, a GPU Triton; what is missing shows only when something is compiled.
    """
    backend = named_backend(compile)
    if backend is None:
        return None
    try:
        torch.compile(_probe, backend=backend)(torch.ones(2, device=device))
    except Exception as error:  # each backend has its own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        logger.warning("compile: %s cannot be used here and is left out: %s", backend, reason[:200])
        return None
    finally:
        torch.compiler.reset()
    return backend


def accelerated(restorer: Restorer, *, backend: str | None = None, device: torch.device | str = "cpu") -> Restorer:
    """Return a Restorer that shares its weights with `restorer`, channels last in memory, and runs them as asked for.

    Args:
        restorer: of PyTorch's networks; those of an export bring their own engine and stay as they are.
        backend: from `usable_backend`; encoder, denoiser, decoder and refiner are compiled, each when it is first run
            and anew for a second shape of tiles, then for any. On a GPU inductor records CUDA graphs
            (mode 'reduce-overhead'), which pays where launching kernels takes longer than running them.
        device: where the networks will run.
    """
    if isinstance(restorer.autoencoder, ExportedAutoencoder):
        return restorer
    format_weights(restorer, torch.channels_last_3d)
    if backend is None:
        return restorer
    graphs = backend == "inductor" and torch.device(device).type == "cuda"
    with torch.no_grad():
        restorer.autoencoder.only_changes_basis()  # a compiler cannot look at the weights
    engine, autoencoder = copy.copy(restorer), copy.copy(restorer.autoencoder)
    engine.slices_flow = False  # a compiled network is one operation
    for name in ("encode", "decode_difference"):
        _replace(autoencoder, name, _compiled(getattr(autoencoder, name), backend, graphs=graphs))
    engine._modules = {**restorer._modules, "autoencoder": autoencoder}
    for name in ("denoiser", "refiner"):
        network = copy.copy(getattr(restorer, name))
        _replace(network, "forward", _compiled(network.forward, backend, graphs=graphs))
        engine._modules[name] = network
    return engine


def format_weights(network: nn.Module, memory_format: torch.memory_format) -> None:
    """Keep the weights of 3D convolutions in a memory format; their values stay."""
    for parameter in network.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.to(memory_format=memory_format)


def _compiled(function: _Function, backend: str, *, graphs: bool) -> _Function:
    settings: dict[str, Any] = {"mode": "reduce-overhead"} if graphs else {}
    fast: _Function = torch.compile(function, backend=backend, **settings)
    if not graphs:
        return fast

    def kept(*inputs: torch.Tensor | None) -> torch.Tensor:
        # A graph writes into the same memory at each run, and a sampler holds on to what it was given before.
        torch.compiler.cudagraph_mark_step_begin()
        return fast(*inputs).clone()

    return kept


def _replace(module: nn.Module, name: str, function: Callable[..., Any]) -> None:
    object.__setattr__(module, name, function)


def _probe(x: torch.Tensor) -> torch.Tensor:
    return x * 2 + 1
