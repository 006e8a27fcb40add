"""The commands and their options; what each does is in `llmft.commands`."""
