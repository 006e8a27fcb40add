"""Generated answers, and scores of answers and losses."""
