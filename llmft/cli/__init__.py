"""The command line: commands, their options, how errors are shown, and `main`."""
