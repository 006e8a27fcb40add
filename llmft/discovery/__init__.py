"""How plugins are found, imported safely and held against the contract; `llmft.registry` leads."""
