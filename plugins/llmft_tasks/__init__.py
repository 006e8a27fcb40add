"""The task methods that ship with llmft."""
