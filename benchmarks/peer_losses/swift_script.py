"""ms-swift's `swift sft` with the flags of config.sh."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from swift.pipelines import sft_main


def start() -> None:
    """Run it."""
    text = Path("config.sh").read_text("utf-8").replace("\\\n", " ")
    sys.argv = shlex.split(text)[1:]
    sft_main(sys.argv[1:])
