"""An OpenAI-compatible endpoint that answers with finished runs."""
