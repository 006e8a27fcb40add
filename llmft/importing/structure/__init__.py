"""What a table cannot say: keys of a peer that mean something together, one module a peer."""
