"""Answers and scores with a finished run."""
