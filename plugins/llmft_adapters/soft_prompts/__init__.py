"""Soft prompts: what `prompt` and `ptuning` share."""
