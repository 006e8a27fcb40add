"""The adapter methods that llmft brings along."""
