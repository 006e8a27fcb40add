"""Distributions made on the fly: a `*.dist-info` folder and a module, put on `sys.path`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.registry.made_up import Install, adapter_source


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Return a function that installs a fake distribution, gone again after the test."""
    before = set(sys.modules)

    def act(
        dist: str,
        modules: dict[str, str],
        entries: dict[str, dict[str, str]],
        *,
        version: str = "1.0",
        requires: tuple[str, ...] = (),
    ) -> Path:
        root = tmp_path / f"site-{dist}"
        info = root / f"{dist.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        lines = ["Metadata-Version: 2.1", f"Name: {dist}", f"Version: {version}"]
        lines += [f"Requires-Dist: {need}" for need in requires]
        (info / "METADATA").write_text("\n".join(lines) + "\n\nA readme.\nName: not-this\n")
        groups = [
            f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in methods.items())
            for group, methods in entries.items()
        ]
        (info / "entry_points.txt").write_text("\n".join(groups))
        for name, source in modules.items():
            path = root / (name.replace(".", "/") + ".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        monkeypatch.syspath_prepend(root)
        return root

    yield act
    for name in set(sys.modules) - before:
        origin = getattr(sys.modules[name], "__file__", None) or ""
        if origin.startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def install_adapter(install: Install) -> Install:
    """Return a function that installs a distribution with one adapter, from its source."""

    def act(method: str, source: str | None = None, dist: str | None = None, **more: str) -> Path:
        dist = dist or f"llmft-{method}"
        module = dist.replace("-", "_") + "_fake"
        code = adapter_source(method) if source is None else source
        return install(dist, {module: code}, {"llmft.adapters": {method: module}}, **more)

    return act
