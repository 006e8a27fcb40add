"""One thread: sums of two threads differ from run to run."""

from tests.plugins.adapters.conftest import _one_thread

__all__ = ["_one_thread"]
