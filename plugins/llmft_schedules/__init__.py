"""The learning-rate schedules that ship with llmft."""
