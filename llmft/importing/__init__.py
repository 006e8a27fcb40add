"""Command lines of other tools, read into recipes."""
