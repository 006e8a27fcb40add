"""Mutants that no test can tell from the code, each with its reason."""

from __future__ import annotations

EQUIVALENT: dict[tuple[str, str], str] = {
    (
        "plugins/llmft_alignments/preference_maths.py",
        "- return 1 - torch.sigmoid(beta * sign_B * (ratio_B - kl))\n"
        "+ return 1 - torch.sigmoid(beta / sign_B * (ratio_B - kl))",
    ): "sign_B is 1 or -1, and dividing by these is multiplying by them, to the bit",
    (
        "llmft/planning/batch_choice.py",
        "- if not (train.packing and max_length):\n+ if not (train.packing):",
    ): "TrainSettings refuses packing without a max_length, so with packing there is always one",
    (
        "llmft/recipes/tree.py",
        "- return any(path[:end] in self.broken for end in range(len(path) + 1))\n"
        "+ return any(path[:end] in self.broken for end in range(len(path) + 2))",
    ): "a slice that ends behind the path is the path, which is looked for already",
    (
        "llmft/training/metrics.py",
        "- seconds = max(time.monotonic() - self.since, 1e-9)\n"
        "+ seconds = max(time.monotonic() - self.since, 2e-09)",
    ): "it only keeps a rate from being divided by 0: no step takes two nanoseconds",
}
"""(file, diff) -> why nothing that a user or a caller can see differs."""
