"""What every test may use: a real-assets folder, tiny models, and quiet upstream libraries."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from llmft.engine.session import Summary

# Tests run side by side: two threads each would wait for each other more than they compute.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("LLMFT_CACHE", "off")  # nothing of a test stays in the user's folders

gc.disable()  # until all is collected: what is imported stays, and looking at it takes long


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes, too")
    parser.addoption(
        "--extended", action="store_true", help="run every case, where a plain run takes a few"
    )
    parser.addoption(
        "--gpu", action="store_true", help="run the tests that need a GPU; without it none sees one"
    )
    parser.addoption(
        "--rewrite-golden", action="store_true", help="write the files in tests/golden anew"
    )


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--gpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # what is held to the bit is a CPU's


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes; run with --slow"))
        if "extended" in item.keywords and not config.getoption("--extended"):
            item.add_marker(pytest.mark.skip(reason="a case of many; run with --extended"))
        if "gpu" in item.keywords and not config.getoption("--gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU; run with --gpu"))
        elif "gpu" in item.keywords and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="there is no GPU on this machine"))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def nothing_waits_for_the_disk() -> Iterator[None]:
    """Leave out fsync, a tenth of a run's time here: no test cuts the power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


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


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny model with its tokenizer."""
    from llmft.modeling.tiny_models import tiny_model_folder

    return tiny_model_folder(tmp_path_factory.mktemp("models"))


@pytest.fixture
def run(tmp_path: Path, model_folder: Path) -> Callable[..., Summary]:
    """Run stages, as plain data, over the tiny model in this process, and return the summary."""
    from llmft.engine.session import run_recipe
    from llmft.recipes.load import load_recipe
    from llmft.registry.registry import Registry

    def run(*stages: dict[str, Any], **extra: Any) -> Summary:
        data = {"recipe": 1, "name": "tiny", "model": {"path": str(model_folder)},
                "stages": list(stages), **extra}  # fmt: skip
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps(data))  # JSON is YAML
        registry = Registry.discover()
        place = f"output_dir={tmp_path / 'runs'}"
        return run_recipe(load_recipe(path, registry, [place]))

    return run


@pytest.fixture
def llama():
    """A fresh tiny Llama with grouped-query attention."""
    from llmft.modeling.tiny_models import tiny_llama

    return tiny_llama()


@pytest.fixture
def tokenizer():
    """A byte-level tokenizer with an end-of-text token and no padding token."""
    from llmft.modeling.tiny_models import tiny_tokenizer

    return tiny_tokenizer()
