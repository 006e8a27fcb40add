"""What upstream is kept from: kernels that are fetched from the hub and run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CODE = """
import sys
from llmft.system.quiet import before_upstream
before_upstream()
import bitsandbytes
from transformers.utils import is_kernels_available
from transformers.integrations import hub_kernels
assert not is_kernels_available()
assert not hub_kernels._kernels_enabled
"""


def test_no_kernel_is_fetched_though_the_package_is_installed(tmp_path: Path):
    (tmp_path / "kernels").mkdir()
    told = tmp_path / "fetched"
    code = f"def get_kernel(*names, **options):\n    open({str(told)!r}, 'a').write(names[0])\n"
    (tmp_path / "kernels" / "__init__.py").write_text(code)
    facts = tmp_path / "kernels-0.13.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.13.0\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", CODE], env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not told.exists(), told.read_text()
