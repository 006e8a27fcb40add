"""What methods share that sample their own answers: sampling, scoring, statistics, diagnostics."""
