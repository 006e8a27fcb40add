"""oumi's `oumi train -c config.yaml`."""

from __future__ import annotations

from oumi.core.configs import TrainingConfig
from oumi.train import train


def start() -> None:
    """Run it."""
    config = TrainingConfig.from_yaml("config.yaml")
    config.finalize_and_validate()
    train(config)
