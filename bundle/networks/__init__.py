"""The networks: autoencoder, denoiser, refiner, and the Restorer that joins them."""
