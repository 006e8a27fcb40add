"""How a model is judged and used: answers generated, metrics, scores."""
