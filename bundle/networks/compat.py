"""One door to monai-generative and MONAI core, which hold the same networks under different names.

monai-generative 0.2.3 does not import unaided beside MONAI 1.6 (`generative.networks.schedulers` wants a name
that moved), creates attention projections that it never uses, and names some weights differently from core.
All of that is dealt with here: `networks_from` picks the package, and weights are always saved and loaded in
monai-generative's layout, so that either package reads what the other wrote.
"""

import re
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

NetworksFrom = Literal["generative", "core"]

# core name -> generative name; core's attention keeps its projections one level deeper.
_CORE_ATTENTION = re.compile(r"\.attn\.(to_[qkv])\.")
_GENERATIVE_ATTENTION = re.compile(r"(?<!\.attn)\.(to_[qkv])\.")


def build_autoencoder(networks_from: NetworksFrom, **arguments: Any) -> nn.Module:
    """Build AutoencoderKL from the named package; arguments under monai-generative's names.

    Raises:
        ValueError: when `networks_from` is neither 'generative' nor 'core'.
    """
    if networks_from == "generative":
        return _without_dead_projections(_generative_nets().AutoencoderKL(**arguments))
    from monai.networks.nets.autoencoderkl import AutoencoderKL

    return AutoencoderKL(**_core_arguments(networks_from, arguments))


def build_denoiser(networks_from: NetworksFrom, **arguments: Any) -> nn.Module:
    """Build DiffusionModelUNet from the named package; arguments under monai-generative's names.

    Raises:
        ValueError: when `networks_from` is neither 'generative' nor 'core'.
    """
    if networks_from == "generative":
        return _without_dead_projections(_generative_nets().DiffusionModelUNet(**arguments))
    from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet

    return DiffusionModelUNet(**_core_arguments(networks_from, arguments))


def to_generative_keys(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename a core network's weights to monai-generative's layout (which is left as it is)."""
    return {_CORE_ATTENTION.sub(r".\1.", key): value for key, value in state.items()}


def to_core_keys(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename weights in monai-generative's layout to core's; projections that were never used are dropped."""
    return {
        _GENERATIVE_ATTENTION.sub(r".attn.\1.", key): value for key, value in state.items() if ".proj_attn." not in key
    }


def keep_generative_layout(net: nn.Module, networks_from: NetworksFrom) -> nn.Module:
    """Make `net.state_dict()` and `load_state_dict` speak monai-generative's layout, whichever package it is of.

    The hooks also work when `net` is a child: they see the whole dictionary and touch only their own prefix.
    """
    if networks_from == "generative":
        net.register_load_state_dict_pre_hook(_drop_dead_projections)
        return net
    net.register_state_dict_post_hook(_rename_saved)
    net.register_load_state_dict_pre_hook(_rename_loaded)
    return net


def _generative_nets() -> Any:
    # `generative` reads IgniteInfo from monai.config, where it was until MONAI 1.4.
    import monai.config
    from monai.utils import IgniteInfo

    monai.config.IgniteInfo = IgniteInfo  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        # Its vector quantizer, which is not used here, decorates itself with a deprecated autocast.
        warnings.simplefilter("ignore", FutureWarning)
        from generative.networks import nets

    return nets


def _without_dead_projections(net: nn.Module) -> nn.Module:
    """Remove `proj_attn`, which monai-generative creates and never calls: without gradients, DDP would stop."""
    for module in net.modules():
        if hasattr(module, "proj_attn"):
            del module.proj_attn
    return net


def _core_arguments(networks_from: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    if networks_from != "core":
        raise ValueError(f"networks_from must be 'generative' or 'core', not '{networks_from}'")
    renamed = dict(arguments)
    renamed["channels"] = renamed.pop("num_channels")
    if "use_checkpointing" in renamed:
        renamed["use_checkpoint"] = renamed.pop("use_checkpointing")
    # Core's default adds an output projection that monai-generative's forward never had.
    return {**renamed, "include_fc": False}


def _rename_prefixed(state: dict[str, Any], prefix: str, rename: Any) -> None:
    own = {key[len(prefix) :]: state.pop(key) for key in list(state) if key.startswith(prefix)}
    # The leading dot lets the patterns match a projection at the top of the network too.
    state.update({prefix + key[1:]: value for key, value in rename({"." + k: v for k, v in own.items()}).items()})


def _rename_saved(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    _rename_prefixed(state, prefix, to_generative_keys)


def _rename_loaded(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    _rename_prefixed(state, prefix, to_core_keys)


def _drop_dead_projections(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for key in [key for key in state if key.startswith(prefix) and ".proj_attn." in key]:
        del state[key]
