"""The alignment methods that llmft brings along."""
