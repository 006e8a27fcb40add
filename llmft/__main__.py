"""`python -m llmft`: the same as the command `llmft`."""

import os
import sys

# `python -m` looks for modules in the working folder first, which may be somebody else's.
if not sys.flags.safe_path:
    try:
        here = os.getcwd()
    except OSError:  # it was deleted
        here = ""
    if os.path.abspath(f"{__file__}/../..") != here:
        sys.path[:] = [path for path in sys.path if path not in ("", here)]

from llmft.cli.main import main
from llmft.system.launcher import leave

leave(main())
