"""What is on disk: run folders, checkpoints, locks, and going on from them."""
