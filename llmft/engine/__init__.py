"""The main path: pre-flight checks, a run of a recipe, and a stage that runs."""
