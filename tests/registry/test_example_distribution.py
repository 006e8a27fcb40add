"""The third-party example: installed by pip into a folder, it is there; removed, it is gone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmft.cli.commands.new_plugin import write_plugin
from llmft.registry.entry_points import code_hash
from llmft.registry.registry import Registry


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder into which pip installed the example, without a network."""
    folder = tmp_path_factory.mktemp("installed")
    source, _ = write_plugin(
        "bottleneck", "adapter", str(tmp_path_factory.mktemp("source") / "example")
    )
    subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
            "--no-index", "--disable-pip-version-check", "--target", str(folder), str(source),
        ],
        check=True,
    )  # fmt: skip
    return folder


@pytest.fixture
def on_path(target: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(target)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "llmft_bottleneck"]:
        del sys.modules[name]  # or other tests that install the example would find it installed


@pytest.mark.usefixtures("on_path")
def test_the_installed_example_is_found_and_fits_the_contract(target: Path) -> None:
    registry = Registry.discover()
    assert "bottleneck" in registry.names("adapter")
    record = next(row for row in registry.records() if row.method == "bottleneck")
    assert (record.state, record.reason) == ("ok", "")
    assert (record.distribution, record.version) == ("llmft-bottleneck", "0.1.0")
    assert record.capabilities["mergeable"] is False
    assert len(code_hash(record.module)) == 64
    cls = registry.method("adapter", "bottleneck")
    assert Path(sys.modules[cls.__module__].__file__ or "").is_relative_to(target)
    assert cls.Config(method="bottleneck").bottleneck_size == 16


def test_the_uninstalled_example_is_gone(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "site"
    shutil.copytree(target, folder)
    monkeypatch.syspath_prepend(folder)
    assert "bottleneck" in Registry.discover().names("adapter")
    shutil.rmtree(folder)
    assert "bottleneck" not in Registry.discover().names("adapter")


def test_finding_the_example_imports_no_torch(target: Path) -> None:
    program = (
        "import sys\nfrom llmft.registry.registry import Registry\n"
        "Registry.discover().method('adapter', 'bottleneck')\n"
        "assert 'llmft_bottleneck' in sys.modules\n"
        "print([m for m in ('torch', 'transformers', 'numpy', 'rapidfuzz') if m in sys.modules])"
    )
    path = os.pathsep.join([str(target), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": path}, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"
