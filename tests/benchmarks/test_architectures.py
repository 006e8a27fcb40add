"""The page of architectures has every causal model, and a sample comes out as it says."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Plain, with a window, with state beside attention, with sinks, with positions of its own, with
# fused experts, with a cap on its logits; one that is refused, and one that no small copy is of.
SAMPLE = ("llama", "mistral", "granitemoehybrid", "gpt_oss", "roberta", "mixtral", "gemma2",
          "recurrent_gemma", "lfm2", "prophetnet", "xlstm")  # fmt: skip


@pytest.fixture(scope="module")
def program():
    path = ROOT / "benchmarks" / "architectures.py"
    spec = importlib.util.spec_from_file_location("architectures", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def page() -> str:
    return (ROOT / "docs" / "architectures.md").read_text("utf-8")


def verdicts(page: str) -> dict[str, str]:
    return dict(re.findall(r"^\| `(\S+)` \| ([a-z -]+) \|", page, re.MULTILINE))


def test_every_causal_model_is_on_the_page_and_its_counts_are_the_tables(program, page):
    found = verdicts(page)
    assert list(found) == program.model_types()
    counted = re.search(r"(\d+) model types; ([^.]+)\.", page)
    assert int(counted[1]) == len(found)
    told = {name: int(number) for number, name in re.findall(r"(\d+) ([a-z -]+)", counted[2])}
    assert told == Counter(found.values())


@pytest.mark.parametrize("kind", SAMPLE)
def test_a_sample_comes_out_as_the_page_says(kind, program, page):
    one = program.found(kind)
    line = program.line(kind, one)
    assert line.rpartition(" | ")[0] in page
