"""The source of made-up plugins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Install = Callable[..., Path]

GOOD = '''
"""A plugin."""
from llmft.api import Adapter, AdapterConfig, Field, hookimpl


class Config(AdapterConfig):
    """Settings."""

    size: int = Field(4, ge=1, description="how large")


class {cls}(Adapter[Config]):
    """Does {method}.

    And more.
    """

    method = "{method}"
    Config = Config
    mergeable = True

    def attach(self, model):
        return model

    def save(self, model, folder):
        pass

    def load(self, model, folder):
        return model

    def disabled(self, model):
        raise NotImplementedError
'''
HOOK = """

@hookimpl
def llmft_adapters():
    return [{cls}]
"""


def adapter_source(method: str, cls: str = "Made", hook: str = HOOK) -> str:
    """Return the source of a module that offers one adapter that fits the contract."""
    return GOOD.format(method=method, cls=cls) + hook.format(cls=cls)
