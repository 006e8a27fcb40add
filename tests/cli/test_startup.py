"""The light commands import nothing heavy, so that they answer at once."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "torch", "transformers", "peft", "datasets", "numpy", "accelerate", "trl", "bitsandbytes",
    "wandb", "huggingface_hub", "safetensors", "tokenizers", "rich",
)  # fmt: skip
CODE = f"""
import sys
from llmft.cli.main import main
code = main(sys.argv[1:])
sys.stdout.flush()
print(code, *sorted(set({HEAVY}) & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "args",
    [
        ("--help",), ("run", "--help"), ("serve", "--help"), ("watch", "--help"),
        ("validate", "RECIPE"), ("list-plugins",),
        ("list-recipes",), ("show", "lora"), ("schema",), ("explain", "E012"), ("doctor",),
        ("version",),
    ],
    ids=lambda args: args[0],
)  # fmt: skip
def test_a_light_command_imports_nothing_heavy(args, recipe):
    args = [recipe if arg == "RECIPE" else arg for arg in args]
    done = subprocess.run([sys.executable, "-c", CODE, *args], capture_output=True, text=True)
    assert done.stderr.split() == ["0"]
