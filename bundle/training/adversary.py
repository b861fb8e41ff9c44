"""The adversary of stage 0: MONAI's patch discriminator on slices, with an optimizer of its own.

Two loss terms come of it. `adversarial` is MONAI's PatchAdversarialLoss (least squares). `perceptual` is the mean
absolute difference of the discriminator's features of image and reconstruction (Larsen et al. 2016,
arXiv:1512.09300). MONAI's PerceptualLoss is no choice here: its networks come with lpips or torchvision, or are
downloaded when it is built.
"""

import contextlib
from typing import Any

import torch
from monai.losses import PatchAdversarialLoss
from monai.networks.nets import PatchDiscriminator
from torch import nn
from torch.func import functional_call

from bundle.training import distributed


class Adversary:
    """Judges reconstructions and learns to tell them from images; built at first use.

    Args:
        channels: of the discriminator's first layer.
        learning_rate: of its optimizer.
        seed: of its first weights.
    """

    def __init__(self, *, channels: int = 32, learning_rate: float = 1.0e-4, seed: int = 0) -> None:
        self.channels, self.learning_rate, self.seed = channels, learning_rate, seed
        self.network: nn.Module | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self._wrapped: nn.Module | None = None
        self._criterion = PatchAdversarialLoss(criterion="least_squares")
        self._seen: tuple[torch.Tensor, torch.Tensor] | None = None

    def terms(self, decoded: torch.Tensor, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """What reconstructions (B, 1, H, W, D) of `image`, network units, cost their autoencoder."""
        network = self._built(decoded.device)
        # Detached weights: this loss is the autoencoder's, and moves nothing of the discriminator.
        frozen = {name: value.detach() for name, value in network.named_parameters()}
        fake = functional_call(network, frozen, (_slices(decoded),))
        with torch.no_grad():
            real = functional_call(network, frozen, (_slices(image),))
        self._seen = (decoded.detach(), image.detach())
        distances = [(a - b).abs().mean() for a, b in zip(fake[:-1], real[:-1], strict=True)]
        return {
            "adversarial": self._criterion(fake[-1], target_is_real=True, for_discriminator=False),
            "perceptual": torch.stack([distance.float() for distance in distances]).mean(),
        }

    def zero_grad(self) -> None:
        """Forget gradients: a step begins."""
        if self.optimizer is not None:
            self.optimizer.zero_grad(set_to_none=True)

    def backward(self, *, share: float, last: bool) -> None:
        """Learn from what `terms` saw last.

        Args:
            share: the batch's part in the optimizer step.
            last: whether it is the step's last batch, after which processes exchange gradients.
        """
        if self._seen is None or self.network is None:
            return
        if self._wrapped is None:
            self._wrapped = distributed.wrap(self.network)
        fake, real = (_slices(volume).float() for volume in self._seen)
        self._seen = None
        with contextlib.nullcontext() if last else distributed.synchronised_later(self._wrapped):
            judged_fake, judged_real = self._wrapped(torch.cat([fake, real]))[-1].chunk(2)
            loss = self._criterion(judged_fake, target_is_real=False, for_discriminator=True)
            loss = 0.5 * (loss + self._criterion(judged_real, target_is_real=True, for_discriminator=True))
            (loss * share).backward()

    def update(self, *, factor: float) -> None:
        """Take an optimizer step; `factor` is the learning-rate schedule's."""
        if self.optimizer is None:
            return
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * factor
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any] | None:
        """What a resume needs; None when it was never used."""
        if self.network is None or self.optimizer is None:
            return None
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Take over a saved state."""
        self._built(device).load_state_dict(state["network"])
        assert self.optimizer is not None
        self.optimizer.load_state_dict(state["optimizer"])

    def _built(self, device: torch.device) -> nn.Module:
        if self.network is None:
            # Its weights are drawn apart: the run's own noise must not depend on when this happens.
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(self.seed)
                # On slices: patches have few of them. Instance norms, as batches are small.
                self.network = PatchDiscriminator(
                    spatial_dims=2, channels=self.channels, in_channels=1, num_layers_d=3, norm="INSTANCE"
                ).to(device)
            self.optimizer = torch.optim.Adam(self.network.parameters(), lr=self.learning_rate, betas=(0.5, 0.9))
        return self.network


def _slices(volume: torch.Tensor) -> torch.Tensor:
    """(B, 1, H, W, D) as (B * D, 1, H, W)."""
    return volume.movedim(-1, 1).flatten(0, 1)
