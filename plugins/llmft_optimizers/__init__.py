"""The optimisers that ship with llmft."""
