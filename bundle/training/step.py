"""The training step: one module whose forward gives the losses, so that DDP and autocast wrap all of it."""

import dataclasses
import functools
from collections.abc import Mapping

import torch
from torch import nn

from bundle.diffusion.bridge import BrownianBridge
from bundle.diffusion.process import DiffusionProcess
from bundle.networks.precision import Precision
from bundle.networks.restorer import Conditions, Restorer
from bundle.training.adversary import Adversary
from bundle.training.losses import LOSS_CORNER, charbonnier, kl_divergence, noise_relative_charbonnier
from bundle.training.phases import Phase


class TrainingStep(nn.Module):
    """Computes the current phase's losses of a batch.

    Args:
        restorer: the networks.
        precision: number format of the forward pass.
        adversary: of phases with an adversarial or a perceptual term; no part of this module's parameters.
        loss_corner: error in units of the noise beyond which the losses on pixels are linear.
        noisy_weight: power of the noise by which slices count in them (`noise_relative_charbonnier`).
    """

    def __init__(
        self,
        restorer: Restorer,
        *,
        precision: Precision,
        adversary: Adversary | None = None,
        loss_corner: float = LOSS_CORNER,
        noisy_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.pixel_loss = functools.partial(noise_relative_charbonnier, corner=loss_corner, noisy_weight=noisy_weight)
        self.restorer = restorer
        self.precision = precision
        self.adversary = adversary or Adversary()
        self.weights: dict[str, float] = {}
        self.start_fraction: float | None = None
        # First sample of the batch within the batch of all processes, and that one's size; None: they are the same.
        self.place: tuple[int, int] | None = None

    def set_phase(self, phase: Phase) -> None:
        """Freeze what does not train in `phase` and take its loss weights."""
        for name, parameters in self.restorer.groups().items():
            for parameter in parameters:
                parameter.requires_grad_(name in phase.trains)
                if name not in phase.trains:
                    # AdamW moves parameters of zero gradient by its momentum; of no gradient it leaves them alone.
                    parameter.grad = None
        self.weights = {name: weight for name, weight in phase.losses.items() if weight > 0}
        self.start_fraction = phase.start_fraction

    def forward(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return each loss term and their weighted sum as 'loss', float32 scalars.

        Args:
            batch: image and label (B, 1, H, W, D) HU, spacing_mm (B, 3), noise_level (B, D) HU.
        """
        with self.precision.autocast():
            terms = self._terms(batch)
        total = torch.stack([self.weights[name] * term.float() for name, term in terms.items()]).sum()
        return {**terms, "loss": total}

    def _terms(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        terms: dict[str, torch.Tensor] = {}
        if self.weights.keys() & {"reconstruction", "kl", "adversarial", "perceptual"}:
            terms |= self._autoencoder_terms(batch)
        if self.weights.keys() & {"refined", "unrefined", "target"}:
            terms |= self._denoiser_terms(batch)
        return {name: term for name, term in terms.items() if name in self.weights}

    def _autoencoder_terms(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The autoencoder has to reproduce clean and degraded images alike, or it would become the denoiser."""
        restorer = self.restorer
        both_hu = torch.cat([batch["label"], batch["image"]])
        mean, std = restorer.autoencoder.distribution(restorer.units.from_hu(both_hu))
        decoded = restorer.autoencoder.decode_raw(mean + std * self._noise(std, copies=2))
        difference_hu = restorer.linear.to_hu(decoded) - both_hu
        terms = {"reconstruction": charbonnier(difference_hu), "kl": kl_divergence(mean, std)}
        if self.weights.keys() & {"adversarial", "perceptual"}:
            terms |= self.adversary.terms(decoded, restorer.linear.from_hu(both_hu))
        return terms

    def _denoiser_terms(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        restorer, process = self.restorer, self._process()
        conditions = restorer.conditions(
            restorer.units.from_hu(batch["image"]), batch["spacing_mm"], batch["noise_level"]
        )
        clean = restorer.autoencoder.encode(restorer.units.from_hu(batch["label"]))
        first, whole = self.place or (0, clean.shape[0])
        t = process.sample_times(whole)[first : first + clean.shape[0]].to(clean.device)
        noise = self._noise(clean)
        z_t = process.corrupt(clean, conditions.latent, t, noise, conditions.spread)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._latents_learn()):  # as fast as in use otherwise
            prediction = restorer.predict(conditions, z_t, t)
        target = process.target(clean, conditions.latent, t, noise, conditions.spread)
        terms = {"target": (prediction - target).square().mean()}
        if self.weights.keys() & {"refined", "unrefined"}:
            latent = process.to_clean(prediction, z_t, conditions.latent, t, conditions.spread)
            terms |= self._pixel_terms(conditions, latent, batch)
        return terms

    def _latents_learn(self) -> bool:
        """Whether a gradient has to go through the prediction."""
        groups = self.restorer.groups()
        return any(weight.requires_grad for name in ("unet", "vae_encoder") for weight in groups[name])

    def _process(self) -> DiffusionProcess:
        process = self.restorer.process
        if self.start_fraction is None or not isinstance(process, BrownianBridge):
            return process
        return dataclasses.replace(process, start_fraction=self.start_fraction)

    def _noise(self, like: torch.Tensor, *, copies: int = 1) -> torch.Tensor:
        """Standard normal noise of a shape (copies x B, ...): this batch's part of what the whole batch gets.

        Every process draws the noise of all, so that several see together what one alone would see.
        """
        batch = like.shape[0] // copies
        first, whole = self.place or (0, batch)
        noise = torch.randn((copies, whole, *like.shape[1:]), dtype=like.dtype, device=like.device)
        return noise[:, first : first + batch].flatten(0, 1)

    def _pixel_terms(
        self, conditions: Conditions, latent: torch.Tensor, batch: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        def loss(image: torch.Tensor) -> torch.Tensor:
            difference_hu = self.restorer.linear.to_hu(image) - batch["label"]
            return self.pixel_loss(difference_hu, batch["noise_level"])

        unrefined = self.restorer.unrefined(conditions, latent)
        terms = {"unrefined": loss(unrefined)}
        if "refined" in self.weights:
            terms["refined"] = loss(self.restorer.refined(conditions, unrefined))
        return terms
