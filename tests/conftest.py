"""What every test may use: a real-assets folder, tiny models, and quiet upstream libraries."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Tests run side by side: two threads each would wait for each other more than they compute.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("LLMFT_CACHE", "off")  # nothing of a test stays in the user's folders


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes; run with --slow"))
        if "gpu" in item.keywords and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="no accelerator on this machine"))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def real_assets() -> Path:
    """The folder of real models and data that LLMFT_REAL_ASSETS names."""
    folder = os.environ.get("LLMFT_REAL_ASSETS")
    if not folder:
        pytest.skip("LLMFT_REAL_ASSETS is not set")
    return Path(folder).resolve()


@pytest.fixture
def llama():
    """A fresh tiny Llama with grouped-query attention."""
    from llmft.testing.models import tiny_llama

    return tiny_llama()


@pytest.fixture
def tokenizer():
    """A byte-level tokenizer with an end-of-text token and no padding token."""
    from llmft.testing.models import tiny_tokenizer

    return tiny_tokenizer()
