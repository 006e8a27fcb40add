"""The reward functions that llmft brings along."""
