"""The Restorer: one image-to-image network that joins autoencoder, denoiser and refiner.

HU never pass through the latent only. With y the input, z_y its latent and z the restored latent,
output = y + decode(z) - decode(z_y) + refiner: what the autoencoder gets wrong cancels, and where the denoiser
changes nothing the input comes back.
"""

import functools
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from bundle.diffusion.process import DiffusionProcess, Noise, Predict, State
from bundle.networks.autoencoder import Autoencoder
from bundle.networks.denoiser import Denoiser
from bundle.networks.noise_estimate import noise_level as estimate_noise_level
from bundle.networks.refiner import Refiner
from bundle.units import LinearWindow, Units

_TYPICAL_SPACING_MM = (0.75, 2.0)  # in plane, between slices: what the context calls zero
_RELATIVE_NOISE = (0.05, 20.0)  # bounds of noise relative to the training reference
_LEAST_NOISE_HU = 0.5


@dataclass(frozen=True)
class Conditions:
    """What one input says about itself, computed once and used by every step.

    Attributes:
        base: the input in linear network units (B, 1, H, W, D).
        latent: its whitened latent (B, L, h, w, D).
        spread: expected size of degraded minus clean latents, (B, L, 1, 1, D).
        context: maps for the denoiser (B, 3, 1, 1, D).
        noise: noise level in network units (B, 1, 1, 1, D).
    """

    base: torch.Tensor
    latent: torch.Tensor
    spread: torch.Tensor
    context: torch.Tensor
    noise: torch.Tensor


class Restorer(nn.Module):
    """Restores (B, C, H, W, D) in network units to (B, 1, H, W, D); any H, W and D.

    Args:
        autoencoder: image to latent and back.
        denoiser: the diffusion's network.
        refiner: correction on pixels.
        process: the diffusion process (bridge or Gaussian).
        units: how HU become the network's input.
    """

    # No operation needs all slices at once, so that they can flow through (networks.slice_stream).
    slices_flow = True
    # True for networks that see all of a slice (norms, attention) and further along than tiles reach.
    seams_in_tiles = False

    latent_spread: torch.Tensor
    noise_reference_hu: torch.Tensor
    measured: torch.Tensor

    def __init__(
        self,
        autoencoder: Autoencoder,
        denoiser: Denoiser,
        refiner: Refiner,
        *,
        process: DiffusionProcess,
        units: Units,
    ) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.denoiser = denoiser
        self.refiner = refiner
        self.process = process
        self.units = units
        self.linear = LinearWindow()
        # The ablations that every evaluation reports; both are on in a trained network.
        self.use_denoiser = True
        self.use_refiner = True
        self.register_buffer("latent_spread", torch.ones(autoencoder.latent_channels))
        self.register_buffer("noise_reference_hu", torch.tensor(20.0))
        self.register_buffer("measured", torch.tensor(False))

    def __prepare_scriptable__(self) -> nn.Module:
        """What `torch.jit.script` compiles in place of this module: a trace, which serves every shape.

        MONAI's `ckpt_export`, as the model zoo's checks call it, scripts, which the packages' networks do not bear.
        """
        return OneStepTrace(self)

    @property
    def multiple(self) -> int:
        """H and W are padded to multiples of this inside; patches should be multiples already."""
        return max(self.autoencoder.factor * self.denoiser.multiple, self.refiner.multiple)

    def forward(
        self,
        x: torch.Tensor,
        spacing_mm: torch.Tensor | None = None,
        noise_level: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the deterministic one-step restoration.

        Args:
            x: network units (B, C, H, W, D).
            spacing_mm: (B, 3) along H, W, D; None stands for a typical scan.
            noise_level: standard deviation of the noise per slice in HU, (B, D); None estimates it from x.
        """
        conditions, size = self._conditioned(x, spacing_mm, noise_level)
        latent = conditions.latent
        if self.use_denoiser:
            predict = functools.partial(self.predict, conditions)
            latent = self.process.restore(predict, conditions.latent, conditions.spread)
        return self._finished(conditions, latent, size)

    def sample(
        self,
        x: torch.Tensor,
        *,
        steps: int,
        generator: torch.Generator | None = None,
        noise: Noise | None = None,
        spacing_mm: torch.Tensor | None = None,
        noise_level: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Draw a restoration in `steps` evaluations of the denoiser; shapes as in `forward`.

        The refiner corrects what it was trained on, the mean, and a draw gets the mean's correction: of the draw
        itself it would take the drawn noise for noise, and remove it.

        Args:
            x: network units (B, C, H, W, D).
            steps: number of steps of the process' sampler.
            generator: source of the noise; None uses torch's global one.
            noise: function of the step number that gives latent noise, on any device, in place of a generator.
            spacing_mm: as in `forward`.
            noise_level: as in `forward`.
        """
        shape = self.latent_shape(x)

        def draw(_: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, device=generator.device if generator else None)

        (restored,) = self.advance(
            x,
            (),
            part=range(steps),
            steps=steps,
            noise=noise or draw,
            spacing_mm=spacing_mm,
            noise_level=noise_level,
        )
        return restored

    def advance(
        self,
        x: torch.Tensor,
        state: State,
        *,
        part: range,
        steps: int,
        noise: Noise,
        spacing_mm: torch.Tensor | None = None,
        noise_level: torch.Tensor | None = None,
    ) -> State:
        """Take a part of the steps of a draw: latents (B, L, h, w, D), and after the last step the restoration alone.

        Args:
            x: network units (B, C, H, W, D).
            state: what the part before returned; () before the first.
            part: numbers of the steps to take.
            steps: how many there are in all.
            noise: as in `sample`.
            spacing_mm: as in `forward`.
            noise_level: as in `forward`.
        """

        def on_device(step: int) -> torch.Tensor:  # noise tied to positions is made on the CPU
            return noise(step).to(x.device)

        conditions, size = self._conditioned(x, spacing_mm, noise_level)
        mean = None
        if self.use_denoiser:
            predict = _keeping_the_first(functools.partial(self.predict, conditions))
            state = self.process.run(
                predict, state, conditions.latent, conditions.spread, part=part, steps=steps, noise=on_device
            )
            if part.stop == steps > 1 and self.use_refiner:
                mean = self.process.restore(predict, conditions.latent, conditions.spread)
        else:
            state = (conditions.latent,)
        if part.stop < steps:
            return state
        return (self._finished(conditions, state[0], size, mean=mean),)

    def latent_shape(self, x: torch.Tensor) -> tuple[int, int, int, int, int]:
        """Shape (B, L, h, w, D) of the latents that x (B, C, H, W, D) is restored in, rows and columns padded."""
        factor = self.autoencoder.factor
        height, width = (-(-size // self.multiple) * self.multiple // factor for size in x.shape[2:4])
        return x.shape[0], self.autoencoder.latent_channels, height, width, x.shape[4]

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        """Return decode(encode(x)): the autoencoder's ceiling, for evaluation."""
        padded, (height, width) = self._pad(x)
        return self.autoencoder.decode(self.autoencoder.encode(padded))[:, :, :height, :width]

    def conditions(
        self,
        x: torch.Tensor,
        spacing_mm: torch.Tensor | None = None,
        noise_level: torch.Tensor | None = None,
    ) -> Conditions:
        """Compute what the denoiser and the refiner need to know of x (H, W multiples of `multiple`)."""
        base_hu = self.units.to_hu(x)
        if noise_level is None:
            noise_level = estimate_noise_level(base_hu)
        noise_hu = noise_level.to(x.dtype).clamp_min(_LEAST_NOISE_HU)[:, None, None, None, :]
        relative = (noise_hu / self.noise_reference_hu).clamp(*_RELATIVE_NOISE)
        return Conditions(
            base=self.linear.from_hu(base_hu),
            latent=self.autoencoder.encode(x),
            spread=relative * self.latent_spread[:, None, None, None],
            context=torch.cat([relative.log(), *_spacing_maps(spacing_mm, relative)], dim=1),
            noise=noise_hu / self.linear.hu_per_unit,
        )

    def predict(self, conditions: Conditions, z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Return the denoiser's raw prediction at time t (B,)."""
        return self.denoiser(z_t, conditions.latent, t, conditions.context)

    def unrefined(self, conditions: Conditions, latent: torch.Tensor) -> torch.Tensor:
        """Return input + decode(latent) - decode(input's latent), in linear network units."""
        return conditions.base + self.autoencoder.decode_difference(latent, conditions.latent)

    def refined(self, conditions: Conditions, unrefined: torch.Tensor) -> torch.Tensor:
        """Return the restoration with the refiner's correction added."""
        return unrefined + self.correction(conditions, unrefined)

    def correction(self, conditions: Conditions, unrefined: torch.Tensor) -> torch.Tensor:
        """Return what the refiner adds to an unrefined restoration."""
        return cast(torch.Tensor, self.refiner(conditions.base, unrefined, conditions.noise))

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by the names that learning-rate multipliers use."""
        return {
            "unet": list(self.denoiser.parameters()),
            "vae_encoder": self.autoencoder.encoder_parameters(),
            "vae_decoder": self.autoencoder.decoder_parameters(),
            "refiner": list(self.refiner.parameters()),
        }

    @torch.no_grad()
    def measure(self, degraded: torch.Tensor, clean: torch.Tensor, noise_level: torch.Tensor) -> None:
        """Measure the latent's scale and the bridge's spread once, from pairs of training patches.

        Args:
            degraded: HU (N, 1, H, W, D).
            clean: HU (N, 1, H, W, D).
            noise_level: HU (N, D).
        """
        clean_raw, degraded_raw = self._raw_latents(clean), self._raw_latents(degraded)
        self.autoencoder.measure(clean_raw)
        self.noise_reference_hu.copy_(noise_level.log().mean().exp())
        relative = (noise_level / self.noise_reference_hu).clamp(*_RELATIVE_NOISE)[:, None, None, None, :]
        residual = (degraded_raw - clean_raw) / self.autoencoder.latent_std[:, None, None, None] / relative
        self.latent_spread.copy_(residual.transpose(0, 1).flatten(1).std(1).clamp_min(1.0e-4))
        self.measured.fill_(True)

    def _raw_latents(self, volume_hu: torch.Tensor) -> torch.Tensor:
        # A few at a time: memory for one training batch has to be enough.
        parts = self.units.from_hu(volume_hu).split(2)
        return torch.cat([self.autoencoder.distribution(part)[0] for part in parts])

    def _conditioned(
        self, x: torch.Tensor, spacing_mm: torch.Tensor | None, noise_level: torch.Tensor | None
    ) -> tuple[Conditions, tuple[int, int]]:
        """Conditions of the padded input, and the rows and columns it had."""
        padded, size = self._pad(x)
        if noise_level is None:  # before padding, which repeats the border
            noise_level = estimate_noise_level(self.units.to_hu(x))
        return self.conditions(padded, spacing_mm, noise_level), size

    def _finished(
        self, conditions: Conditions, latent: torch.Tensor, size: tuple[int, int], *, mean: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The image of a latent, with the refiner's correction of `mean`, which is the latent itself where None."""
        restored = self.unrefined(conditions, latent)
        if self.use_refiner:
            corrected = restored if mean is None else self.unrefined(conditions, mean)
            restored = restored + self.correction(conditions, corrected)
        return restored[:, :, : size[0], : size[1]]

    def _pad(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        height, width = x.shape[2:4]
        rows, columns = -height % self.multiple, -width % self.multiple
        # A trace keeps the branch that its example took, so that there the padding is always part of the graph.
        if torch.jit.is_tracing() or rows or columns:
            x = functional.pad(x, (0, 0, 0, columns, 0, rows), mode="replicate")
        return x, (height, width)


class OneStepTrace(nn.Module):
    """The one-step restoration of a Restorer as a traced module: (B, C, H, W, D) to (B, 1, H, W, D)."""

    def __init__(self, restorer: Restorer) -> None:
        super().__init__()
        like = next(restorer.parameters())
        example = torch.zeros(1, restorer.units.channels, 4 * restorer.multiple, 4 * restorer.multiple, 2).to(like)
        with torch.no_grad():
            self.traced = torch.jit.trace(restorer, example, check_trace=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the restoration of x."""
        restored: torch.Tensor = self.traced(x)
        return restored


def _keeping_the_first(predict: Predict) -> Predict:
    """Evaluate only once what a bridge's draw begins with and its mean follows from."""
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def predicted(z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if kept and kept[0][0] is z_t:
            return kept[0][1]
        prediction = predict(z_t, t)
        if not kept:
            kept.append((z_t, prediction))
        return prediction

    return predicted


def _spacing_maps(spacing_mm: torch.Tensor | None, like: torch.Tensor) -> list[torch.Tensor]:
    """Logarithms of in-plane and slice spacing relative to a typical scan, each shaped as `like`."""
    if spacing_mm is None:
        return [torch.zeros_like(like), torch.zeros_like(like)]
    in_plane = spacing_mm[:, :2].mean(1) / _TYPICAL_SPACING_MM[0]
    between = spacing_mm[:, 2] / _TYPICAL_SPACING_MM[1]
    maps = [value.to(like).log()[:, None, None, None, None].expand_as(like) for value in (in_plane, between)]
    return cast(list[torch.Tensor], maps)
