"""Training: phases, losses, the training step, checkpoints, the trainer, validation."""
