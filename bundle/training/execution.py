"""How networks compute in training, without a change of what they compute: activation checkpointing, compilation."""

import functools
from collections.abc import Iterator
from typing import Any, cast

from torch import nn
from torch.utils.checkpoint import checkpoint

from bundle.configuration import flag
from bundle.networks.acceleration import named_backend
from bundle.networks.restorer import Restorer


def prepare(restorer: Restorer, *, activation_checkpointing: bool | str = False, compile: bool | str = False) -> bool:
    """Switch on what was asked for; names and values of the weights stay.

    Args:
        restorer: the networks.
        activation_checkpointing: compute the activations of each block again for the gradient, do not keep them
            (Chen et al. 2016, arXiv:1604.06174).
        compile: torch.compile of the denoiser and the refiner; True, False, or the name of a backend.

    Raises:
        BundleError: for a switch that is neither true nor false, or an unknown compiler backend.
    """
    if flag(activation_checkpointing):
        for block in _blocks(restorer):
            # No dropout anywhere: the second pass draws nothing, so the generator need not be kept.
            block.forward = functools.partial(  # type: ignore[method-assign]
                checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
            )
    backend = named_backend(compile)
    if backend is not None:
        for network in (restorer.denoiser, restorer.refiner):
            network.compile(backend=backend)  # type: ignore[no-untyped-call]
    return True


def _blocks(restorer: Restorer) -> Iterator[nn.Module]:
    unet = cast(Any, restorer.denoiser.net)
    yield from (*unet.down_blocks, unet.middle_block, *unet.up_blocks)
    autoencoder = cast(Any, restorer.autoencoder.net)
    yield from (*autoencoder.encoder.blocks, *autoencoder.decoder.blocks)
    yield restorer.refiner
