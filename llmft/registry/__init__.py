"""Installed methods: found, imported safely, and checked against the contract."""
