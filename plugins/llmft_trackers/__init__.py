"""The trackers that llmft brings along."""
