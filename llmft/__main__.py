"""`python -m llmft`: the same as the command `llmft`."""

import sys

from llmft.cli.main import main

sys.exit(main())
