"""Promises held against a recipe: `llmft verify`."""
