"""Every command on the page about what comes after training runs on a real run, in its order."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from llmft.cli.main import main
from tests.exporting.conftest import lora_run, rows_file, train  # noqa: F401 - fixtures

PAGE = Path(__file__).parents[2] / "docs" / "after-training.md"
BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def place(lora_run, rows_file, tmp_path_factory) -> Path:  # noqa: F811 - fixtures
    folder: Path = tmp_path_factory.mktemp("page")
    shutil.copytree(lora_run, folder / "RUN")
    shutil.copytree(lora_run, folder / "OTHER")
    shutil.copy(rows_file, folder / "rows.jsonl")
    return folder


def test_the_page_has_blocks():
    assert BLOCKS


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_commands_of_the_page_run(number, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    for line in BLOCKS[number].splitlines():
        program, *words = shlex.split(line, comments=True)
        assert program == "llmft"
        assert main(words) == 0, capsys.readouterr().err
