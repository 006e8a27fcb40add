"""The bodies of the longer commands: each gives plain data, and the text that shows it."""
