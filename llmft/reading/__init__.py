"""How a recipe's text becomes a checked recipe: places, types, spellings, references, secrets."""
