"""`python -m llmft`: the same as the command `llmft`."""

import os
import sys

# `python -m` looks for modules in the working folder first, which may be somebody else's.
if not sys.flags.safe_path and os.path.abspath(f"{__file__}/../..") != os.getcwd():
    sys.path[:] = [path for path in sys.path if path not in ("", os.getcwd())]

from llmft.cli.main import main
from llmft.system.launcher import leave

leave(main())
