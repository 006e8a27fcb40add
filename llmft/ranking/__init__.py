"""People rank a model's answers: the samples, the ratings on disk, the page, and what comes of it.

A samples file holds prompts with several answers each. Beside it, in `ratings/`, every rater has an
append-only file of decisions. `preferences` turns both into the rows that the preference data set
reads, and `agreement` says how far the raters agree.
"""

from llmft.ranking.agreement import agreement
from llmft.ranking.combining import Combined, Pairs, combine, preferences
from llmft.ranking.judge_rows import judged
from llmft.ranking.ratings import Decision, Ratings, read_ratings
from llmft.ranking.samples import RATINGS, Sample, read_samples, remaining

__all__ = [
    "RATINGS", "Combined", "Decision", "Pairs", "Ratings", "Sample", "agreement", "combine",
    "judged", "preferences", "read_ratings", "read_samples", "remaining",
]  # fmt: skip
