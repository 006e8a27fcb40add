"""Run folders: what stages made, provenance, fingerprints, locks, and resuming."""
