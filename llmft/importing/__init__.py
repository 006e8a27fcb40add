"""Configurations and command lines of other tools, read into recipes."""
