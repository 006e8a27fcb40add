"""What leaves a run for other programs: merged models, and adapter folders."""
