"""The training loop and its parts: optimizer, checkpoints, metrics, guards."""
