"""The process that tells wandb."""

from __future__ import annotations

from llmft_trackers.process import TrackerProcess, variables_without_secrets


class WandbProcess(TrackerProcess):
    """Tells wandb what it is told; with_key: whether it may know wandb's key."""

    def __init__(self, with_key: bool) -> None:
        super().__init__("wandb", "llmft_trackers.wandb.writer", _environment(with_key))


def _environment(with_key: bool) -> dict[str, str]:
    """Return the environment without secrets that are not wandb's, for a process that logs."""
    kept = variables_without_secrets(lambda name: name.startswith("WANDB_"))
    if not with_key:
        kept.pop("WANDB_API_KEY", None)
    for name in ("RUN_ID", "DIR", "RESUME", "SWEEP_ID"):  # the tracker says which run this is
        kept.pop(f"WANDB_{name}", None)
    kept["WANDB_ERROR_REPORTING"] = "false"
    return kept
