"""Reads the command lines of other programs, and writes recipes."""
