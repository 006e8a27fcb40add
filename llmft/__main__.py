"""`python -m llmft`: the same as the command `llmft`."""

import sys

from llmft.cli import main

sys.exit(main())
