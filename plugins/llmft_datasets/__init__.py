"""The data set methods that llmft brings along."""
