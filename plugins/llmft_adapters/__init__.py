"""The adapter methods that ship with llmft."""
