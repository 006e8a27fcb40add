"""The callbacks that ship with llmft."""
