"""`python -m llmft`: the same as the command `llmft`."""

from llmft.cli.main import main
from llmft.system.launcher import leave

leave(main())
