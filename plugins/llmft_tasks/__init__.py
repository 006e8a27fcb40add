"""The task methods that llmft brings along."""
