"""From YAML to a checked recipe. Imports nothing heavy."""
