"""Models: loading, attention, forward passes, heads, decoding."""
