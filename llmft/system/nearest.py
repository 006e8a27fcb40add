"""The valid words that somebody may have meant."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(word: str, words: Iterable[str]) -> list[str]:
    """Return up to three words within a few edits of `word`, the nearest first; often none."""
    from rapidfuzz.distance import OSA  # only mistakes pay for this import

    word = word[:100].lower()
    allowed = max(1, round(len(word) / 3))
    scored = sorted(
        (OSA.distance(word, other.lower(), score_cutoff=allowed), other) for other in set(words)
    )
    near = [(distance, other) for distance, other in scored if distance <= allowed]
    # A word of two or three letters is near to everything; so take what is no worse than the best.
    return [other for distance, other in near if distance <= near[0][0] + (len(word) > 5)][:3]


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """Return the question "did you mean 'x' or 'y'?", or nothing where no word is near."""
    near = nearest(word, words)
    return f"did you mean {' or '.join(repr(other) for other in near)}?" if near else ""
