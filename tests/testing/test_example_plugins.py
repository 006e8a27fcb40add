"""The example of each kind of plugin passes its own tests, which are the public kit's."""

from __future__ import annotations

import importlib.util
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmft.api.kinds import Kind
from llmft.cli.commands.new_plugin import EXAMPLES, write_plugin
from llmft.registry.contract import KINDS


def own_tests(kind: Kind, folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield the tests of a kind's example, each by a name under which pytest finds it here."""
    # Not the example's own name: what is imported here stays, and other tests install the example.
    name = f"kit_{EXAMPLES[kind]}"
    package, _ = write_plugin(name, kind, str(folder / kind))
    spec = importlib.util.spec_from_file_location(
        f"tests_of_{name}", package / "tests" / f"test_{name}.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(package / "src"))
    try:
        spec.loader.exec_module(module)
        for inner in (package / "src" / f"llmft_{name}").glob("[a-z]*.py"):
            importlib.import_module(f"llmft_{name}.{inner.stem}")  # while it can be found
    finally:
        sys.path.remove(str(package / "src"))
    for key, thing in vars(module).items():
        if key.startswith("test_"):
            yield f"test_{name}_{key.removeprefix('test_')}", thing
        elif re.match(r"Test[A-Z]", key):
            yield f"Test{kind.capitalize()}", thing


with tempfile.TemporaryDirectory() as place:
    for each in KINDS:
        globals().update(own_tests(each, Path(place)))
