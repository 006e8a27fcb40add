"""The trackers that ship with llmft."""
