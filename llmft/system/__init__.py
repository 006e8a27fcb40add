"""The machine: files, processes, signals, random state, output."""
