"""The reward functions that ship with llmft."""
