"""The metrics that ship with llmft."""
