"""The third-party example passes its own tests, which are the public kit's."""

import importlib.util
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "fixtures" / "llmft_example"

_spec = importlib.util.spec_from_file_location(
    "example_tests", EXAMPLE / "tests" / "test_bottleneck.py"
)
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
sys.path.insert(0, str(EXAMPLE / "src"))
try:
    _spec.loader.exec_module(_module)
finally:
    sys.path.remove(str(EXAMPLE / "src"))

TestBottleneck = _module.TestBottleneck
