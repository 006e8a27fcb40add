"""A recipe in small: a tiny model and a few rows, to try it in seconds."""
