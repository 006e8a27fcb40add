"""Every command on the page about what comes after training runs on a real run, in its order."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
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


@pytest.fixture(scope="module")
def port() -> str:
    """A free port, in place of the page's."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.fixture(scope="module")
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    """What the page starts with `&`; it is ended after the last block."""
    found: list[subprocess.Popen[bytes]] = []
    yield found
    for one in found:
        one.send_signal(signal.SIGINT)
        assert one.wait(60) == 0


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_commands_of_the_page_run(number, place, port, started, monkeypatch, capsys):
    monkeypatch.chdir(place)
    for line in BLOCKS[number].replace("8080", port).splitlines():
        program, *words = shlex.split(line, comments=True)
        if program == "curl":
            if shutil.which("curl") is None:
                pytest.skip("there is no curl here")
            assert subprocess.run([program, *words], check=True, capture_output=True).stdout
            continue
        assert program == "llmft"
        if words[-1] == "&":
            started.append(subprocess.Popen([sys.executable, "-m", "llmft", *words[:-1]]))
            wait_for(port)
            continue
        assert main(words) == 0, capsys.readouterr().err


def test_the_quickstart_page_names_every_file_of_a_run(lora_run):  # noqa: F811 - fixtures
    page = (PAGE.parent / "quickstart.md").read_text("utf-8")
    table = page.partition("## What a run writes")[2].partition("\n## ")[0]
    places = [lora_run, *(lora_run / "stages").iterdir()]
    files = {path.name for place in places for path in place.iterdir() if path.is_file()}
    assert len(files) > 10
    assert {name for name in files if name not in table} == set()


def wait_for(port: str) -> None:
    """Return when somebody listens at a port."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(port)), 1):
            return
        time.sleep(0.2)
    raise AssertionError(f"nobody listens at {port}")
