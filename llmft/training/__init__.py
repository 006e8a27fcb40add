"""What the training loop stands on: cheap forward passes, heads, optimizer, steps, signals."""
