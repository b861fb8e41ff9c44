"""The two sizes of the network: `small` (a laptop; shipped) and `full` (the reference's size)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bundle.configuration import checked_number
from bundle.diffusion.bridge import BrownianBridge
from bundle.diffusion.gaussian import GaussianDiffusion, Parameterisation
from bundle.diffusion.process import DiffusionProcess
from bundle.errors import BundleError
from bundle.networks.attention import use_slice_attention
from bundle.networks.autoencoder import Autoencoder
from bundle.networks.compat import NetworksFrom, build_autoencoder, keep_generative_layout
from bundle.networks.denoiser import Denoiser
from bundle.networks.inplane import make_autoencoder_in_plane
from bundle.networks.lossless import lossless_start
from bundle.networks.norm import drop_norms, use_slice_norms
from bundle.networks.refiner import Refiner
from bundle.networks.restorer import Restorer
from bundle.units import ClinicalWindows, LinearWindow, Units


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Sizes of the three networks.

    Attributes:
        autoencoder_channels: channels per level; each level but the last halves rows and columns.
        latent_channels: channels of the latent.
        autoencoder_res_blocks: residual blocks per level.
        denoiser_channels: channels per level.
        denoiser_attention: which levels have self-attention.
        denoiser_res_blocks: residual blocks per level.
        norm_groups: groups of SliceGroupNorm; None: nothing that depends on the slice (VoxelLayerNorm, no attention).
        context: whether the denoiser is told noise level and spacing.
        lossless: whether the autoencoder starts as an exact identity.
        refiner_features: channels per level of the refiner.
        windows: 'linear' or 'clinical'.
        sampler: 'bridge' or 'ddim'.
        tile_size: H, W, D of the tiles that volumes are cut into where nothing else is asked for; slices that flow are
            cut in plane alone. Attention and the norms of slices see all of a plane, which is better not cut at all.
    """

    autoencoder_channels: Sequence[int]
    latent_channels: int
    autoencoder_res_blocks: Sequence[int]
    denoiser_channels: Sequence[int]
    denoiser_attention: Sequence[bool]
    denoiser_res_blocks: int
    norm_groups: int | None
    context: bool
    lossless: bool
    refiner_features: Sequence[int]
    windows: str
    sampler: str
    tile_size: tuple[int, int, int]

    @property
    def factor(self) -> int:
        """Pixels per latent position along a row or column."""
        return 2 ** (len(self.autoencoder_channels) - 1)


PRESETS = {
    "small": Preset(
        autoencoder_channels=(4, 16, 16),
        latent_channels=16,
        autoencoder_res_blocks=(0, 1, 1),  # none on full pixels, where they cost most
        denoiser_channels=(64, 96, 128),
        denoiser_attention=(False, False, False),
        denoiser_res_blocks=1,
        norm_groups=None,
        context=True,
        lossless=True,
        refiner_features=(32, 64, 96),
        windows="linear",
        sampler="bridge",
        tile_size=(512, 512, 40),
    ),
    "full": Preset(
        autoencoder_channels=(96, 192, 384, 512),
        latent_channels=4,
        autoencoder_res_blocks=(2, 2, 2, 2),
        denoiser_channels=(192, 320, 448),
        denoiser_attention=(False, True, True),
        denoiser_res_blocks=2,
        norm_groups=32,
        context=False,
        lossless=False,
        refiner_features=(32, 64, 96),
        windows="clinical",
        sampler="ddim",
        tile_size=(1024, 1024, 8),
    ),
}
# The design of `full`, a 16th of its weights: what a CPU can train to see how norms and attention behave.
PRESETS["full_quarter"] = replace(
    PRESETS["full"], autoencoder_channels=(24, 48, 96, 128), denoiser_channels=(48, 80, 112), norm_groups=8
)
# Small enough for a test or a dry run; the same design as `small`.
PRESETS["tiny"] = replace(PRESETS["small"], denoiser_channels=(8, 16), denoiser_attention=(False, False))
PRESETS["tiny"] = replace(PRESETS["tiny"], refiner_features=(4, 8, 8))


def preset_of(name: str) -> Preset:
    """The preset of that name.

    Raises:
        BundleError: when there is none.
    """
    if name not in PRESETS:
        raise BundleError(f"preset '{name}' is unknown", hint=f"use one of {', '.join(PRESETS)}")
    return PRESETS[name]


def tile_size(preset: str, asked: Sequence[int] | str) -> Sequence[int] | str:
    """What `asked` says (H, W, D), or the preset's own tiles where it is 'auto'.

    Raises:
        BundleError: for an unknown preset.
    """
    return preset_of(preset).tile_size if asked == "auto" else asked


def build_restorer(
    preset: str = "small",
    *,
    networks_from: NetworksFrom = "generative",
    windows: str = "auto",
    sampler: str = "auto",
    parameterisation: Parameterisation = "epsilon",
    noise_scale: float = 1.5,
    start_fraction: float = 0.45,
    eta: float = 0.0,
    start_time: float = 1.0,
) -> Restorer:
    """Build the Restorer of a preset.

    Args:
        preset: 'small', 'full', 'full_quarter' (a quarter of its channels), or 'tiny' (for tests).
        networks_from: the package of the autoencoder's and the denoiser's classes: 'generative' or 'core'.
        windows: 'linear', 'clinical', or 'auto' for the preset's own.
        sampler: 'bridge', 'ddim', 'ddpm', 'dpm_solver', or 'auto' for the preset's own.
        parameterisation: what the denoiser predicts under all samplers but 'bridge'.
        noise_scale: size of the bridge's noise.
        start_fraction: part of the training at the bridge's degraded end.
        eta: share of the ancestral noise under 'ddim'.
        start_time: where samplers other than 'bridge' start: 1 from noise, below 1 from the degraded latent noised to
            that time.

    Raises:
        BundleError: for an unknown preset, package, window set or sampler, or values that cannot work.
    """
    chosen = preset_of(preset)
    if networks_from not in ("generative", "core"):
        raise BundleError(f"networks_from '{networks_from}' is unknown", hint="use 'generative' or 'core'")
    units = _units(chosen.windows if windows == "auto" else windows)
    if chosen.lossless and units.channels != 1:
        raise BundleError(f"windows 'clinical' cannot be used with preset '{preset}'", hint="use preset 'full'")
    process = _process(
        chosen.sampler if sampler == "auto" else sampler,
        parameterisation=parameterisation,
        noise_scale=noise_scale,
        start_fraction=start_fraction,
        eta=checked_number("eta", eta, float, low=0),
        start_time=checked_number("start_time", start_time, float),
    )
    restorer = Restorer(
        _autoencoder(chosen, networks_from, units),
        Denoiser(
            chosen.latent_channels,
            context_channels=3 if chosen.context else 0,
            channels=chosen.denoiser_channels,
            attention_levels=chosen.denoiser_attention,
            num_res_blocks=chosen.denoiser_res_blocks,
            norm_groups=chosen.norm_groups,
            networks_from=networks_from,
        ),
        Refiner(chosen.refiner_features),
        process=process,
        units=units,
    )
    restorer.seams_in_tiles = chosen.norm_groups is not None
    return restorer


def _autoencoder(preset: Preset, networks_from: NetworksFrom, units: Units) -> Autoencoder:
    attention = preset.norm_groups is not None
    net = build_autoencoder(
        networks_from,
        spatial_dims=3,
        in_channels=units.channels,
        out_channels=1,
        num_res_blocks=tuple(preset.autoencoder_res_blocks),
        num_channels=tuple(preset.autoencoder_channels),
        attention_levels=(False,) * len(preset.autoencoder_channels),
        latent_channels=preset.latent_channels,
        norm_num_groups=preset.norm_groups or 1,
        with_encoder_nonlocal_attn=attention,
        with_decoder_nonlocal_attn=attention,
    )
    make_autoencoder_in_plane(net, transposed=preset.lossless)
    if preset.lossless:
        # Norms would hide the level (air, water, bone) that has to come out exactly, and cost most of the time.
        drop_norms(net)
        lossless_start(net, factor=preset.factor)
    else:
        use_slice_attention(use_slice_norms(net))
    return Autoencoder(
        keep_generative_layout(net, networks_from),
        latent_channels=preset.latent_channels,
        factor=preset.factor,
        exact_path=preset.lossless,
    )


def _units(windows: str) -> Units:
    if windows == "linear":
        return LinearWindow()
    if windows == "clinical":
        return ClinicalWindows()
    raise BundleError(f"windows '{windows}' is unknown", hint="use 'linear' or 'clinical'")


def _process(
    sampler: str,
    *,
    parameterisation: Parameterisation,
    noise_scale: float,
    start_fraction: float,
    eta: float,
    start_time: float,
) -> DiffusionProcess:
    if sampler == "bridge":
        if eta or start_time != 1:
            raise BundleError(
                "eta and start_time have no meaning with sampler 'bridge'", hint="use them with sampler 'ddim'"
            )
        return BrownianBridge(noise_scale=noise_scale, start_fraction=start_fraction)
    if sampler not in ("ddim", "ddpm", "dpm_solver"):
        raise BundleError(f"sampler '{sampler}' is unknown", hint="use 'bridge', 'ddim', 'ddpm' or 'dpm_solver'")
    try:
        return GaussianDiffusion(
            parameterisation=parameterisation,
            sampler=sampler,  # type: ignore[arg-type]
            eta=eta,
            start_time=start_time,
        )
    except ValueError as error:
        raise BundleError(str(error), hint="use values in that range") from error
