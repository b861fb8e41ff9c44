"""From HU to HU: a network applied to volumes of any size, tile by tile."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.inferers import Inferer, SlidingWindowInferer

from bundle.errors import BundleError
from bundle.networks.precision import Precision, resolve_precision
from bundle.networks.restorer import Restorer


class RestorationInferer(Inferer):
    """Applies a Restorer to HU volumes through MONAI's sliding window, blended where tiles overlap.

    Args:
        tile_size: H, W, D of a tile in voxels; larger than the volume means one tile along that axis.
        overlap: share of a tile that neighbours repeat.
        steps: 1 gives the deterministic one-step restoration of the bridge; more draw samples.
        num_samples: draws that are averaged.
        seed: of the draws.
        mixed_precision: 'auto', 'bf16', 'fp16' or 'off'.
        device: where the network runs.
    """

    def __init__(
        self,
        *,
        tile_size: Sequence[int] = (512, 512, 16),
        overlap: float = 0.25,
        steps: int = 1,
        num_samples: int = 1,
        seed: int = 0,
        mixed_precision: str = "auto",
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        if not 0 <= overlap < 1:
            raise BundleError(f"overlap must be between 0 and 1, not {overlap}")
        if not 1 <= steps <= 1000:
            raise BundleError(f"steps must be between 1 and 1000, not {steps}")
        self.tile_size = tuple(int(size) for size in tile_size)
        self.overlap = overlap
        self.steps = steps
        self.num_samples = num_samples
        self.seed = seed
        self.precision: Precision = resolve_precision(mixed_precision, device)

    def __call__(  # type: ignore[override]
        self,
        inputs: torch.Tensor,
        network: Restorer,
        *,
        spacing_mm: torch.Tensor | None = None,
        noise_level: torch.Tensor | None = None,
        progress: bool = False,
    ) -> torch.Tensor:
        """Return restored HU (B, 1, H, W, D), float32.

        Args:
            inputs: HU (B, 1, H, W, D).
            network: a Restorer.
            spacing_mm: (B, 3).
            noise_level: HU per slice (B, D); None measures it slice by slice.
            progress: show a bar over tiles.
        """
        if noise_level is None:
            noise_level = measure_noise(inputs)
        return self._apply(inputs, noise_level, self._tile_function(network, spacing_mm), progress=progress)

    def with_steps(self, steps: int) -> "RestorationInferer":
        """Return the same inferer with another number of steps, one sample each."""
        other = copy.copy(self)
        other.steps = steps
        return other

    def reconstruct(self, inputs: torch.Tensor, network: Restorer) -> torch.Tensor:
        """Return decode(encode(inputs)), HU (B, 1, H, W, D), by the same tiles: the autoencoder's ceiling."""

        def reconstruct(tile: torch.Tensor) -> torch.Tensor:
            with self.precision.autocast():
                return network.linear.to_hu(network.reconstruct(network.units.from_hu(tile[:, :1])))

        return self._apply(inputs, torch.zeros(inputs.shape[0], inputs.shape[-1]), reconstruct, progress=False)

    def _apply(
        self,
        inputs: torch.Tensor,
        noise_level: torch.Tensor,
        function: Callable[[torch.Tensor], torch.Tensor],
        *,
        progress: bool,
    ) -> torch.Tensor:
        # The noise level travels as a second channel, so that the window cuts it together with the image.
        levels = noise_level.to(inputs)[:, None, None, None, :].expand_as(inputs)
        window = SlidingWindowInferer(
            roi_size=[min(tile, size) for tile, size in zip(self.tile_size, inputs.shape[2:], strict=True)],
            sw_batch_size=1,
            overlap=self.overlap,
            mode="gaussian",
            padding_mode="replicate",
            progress=progress,
        )
        with torch.inference_mode():
            return window(torch.cat([inputs, levels], dim=1), function)  # type: ignore[return-value]

    def _tile_function(
        self, network: Restorer, spacing_mm: torch.Tensor | None
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        generator = torch.Generator().manual_seed(self.seed)

        def restore(tile: torch.Tensor) -> torch.Tensor:
            image_hu, levels = tile[:, :1], tile[:, 1, 0, 0, :]
            x = network.units.from_hu(image_hu)
            with self.precision.autocast():
                if self.steps == 1 and self.num_samples == 1:
                    restored = network(x, spacing_mm, levels)
                else:
                    draws: list[Any] = [
                        network.sample(
                            x, steps=self.steps, generator=generator, spacing_mm=spacing_mm, noise_level=levels
                        )
                        for _ in range(self.num_samples)
                    ]
                    restored = torch.stack(draws).mean(0)
            return network.linear.to_hu(restored.float())

        return restore


def measure_noise(volume_hu: torch.Tensor) -> torch.Tensor:
    """Noise level (B, D) in HU of volumes (B, 1, H, W, D)."""
    from bundle.metrics.noise import noise_level

    return torch.stack([torch.from_numpy(noise_level(volume.cpu().numpy())) for volume in volume_hu[:, 0].float()])
