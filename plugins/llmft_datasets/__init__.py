"""The data set methods that ship with llmft."""
