"""What a recipe would take, without a weight: the real code, run on tensors without numbers."""
