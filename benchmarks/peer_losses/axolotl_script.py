"""Axolotl's `axolotl train config.yaml`."""

from __future__ import annotations

from axolotl.cli.train import do_cli


def start() -> None:
    """Run it."""
    do_cli("config.yaml")
