"""CT enhancement as a MONAI Bundle: restore poor CT series with a 3D conditional latent diffusion model."""

__version__ = "0.2.0"
