"""Holding a promise of the documentation against a user's own recipe."""
