"""The alignment methods that ship with llmft."""
