"""Diffusion processes and their samplers; they take a predict function and know no network."""
