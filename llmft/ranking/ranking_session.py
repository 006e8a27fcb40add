"""One rater at work: which sample is next, in which order its answers are shown, what is saved."""

from __future__ import annotations

import hashlib
import math
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from llmft.ranking.log import RaterLog
from llmft.ranking.ratings import Decision, checked_ranking
from llmft.ranking.samples import Sample, rankable

_LONGEST = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Shown:
    """A sample as a rater sees it.

    texts: the different answers, in the rater's own order. copies: how often each was given.
    ranking: groups of positions in `texts`, as decided before, or None.
    """

    sample: Sample
    texts: tuple[str, ...]
    copies: tuple[int, ...]
    ranking: list[list[int]] | None
    all_bad: bool


class Session:
    """What page and terminal do for a rater. Safe to use from several threads.

    limit: offer only so many of the samples that this rater has not rated yet.
    """

    def __init__(
        self, samples: Sequence[Sample], rater: str, log: RaterLog, limit: int | None = None
    ) -> None:
        self.rater = rater
        self._log = log
        self._lock = threading.Lock()
        everything = rankable(samples)
        self._everything = everything
        left = [sample for sample in everything if sample.id not in log.decisions]
        self.samples = everything if limit is None else tuple(left[:limit])
        self._by_id = {sample.id: sample for sample in self.samples}

    @property
    def rated(self) -> int:
        """How many of the session's samples have a decision."""
        return sum(sample.id in self._log.decisions for sample in self.samples)

    @property
    def left_in_file(self) -> int:
        """How many samples of the whole file this rater has yet to rate."""
        return sum(sample.id not in self._log.decisions for sample in self._everything)

    def next_unrated(self, after: int = -1, skipped: frozenset[int] = frozenset()) -> int | None:
        """Return the number of the next sample without a decision, from the start again; or None.

        skipped: numbers that are not offered.
        """
        count = len(self.samples)
        around = [(after + 1 + step) % count for step in range(count)]
        open_ = [at for at in around if self.samples[at].id not in self._log.decisions]
        return next((at for at in open_ if at not in skipped), None)

    def show(self, at: int) -> Shown:
        """Return a sample as this rater sees it; the order is the same whenever it is shown."""
        sample = self.samples[at]
        order = self._order(sample)
        texts = tuple(sample.completions[sample.distinct[n][0]] for n in order)
        copies = tuple(len(sample.distinct[n]) for n in order)
        decision = self._log.decisions.get(sample.id)
        if decision is None:
            return Shown(sample, texts, copies, None, False)
        position = {sample.distinct[n][0]: place for place, n in enumerate(order)}
        groups = [sorted(position[i] for i in g if i in position) for g in decision.ranking]
        return Shown(sample, texts, copies, [g for g in groups if g], decision.all_bad)

    def decide(self, item: Any, groups: Any, all_bad: Any, seconds: Any) -> Decision:
        """Put a decision on disk, and return it; ValueError where it is none of a sample here.

        groups: positions among the texts as shown, best first, ties together.
        """
        sample = self._by_id.get(item) if isinstance(item, str) else None
        if sample is None:
            raise ValueError("no such item")
        if type(all_bad) is not bool:
            raise ValueError("all_bad is true or false")
        if type(seconds) not in (int, float) or not math.isfinite(seconds):
            raise ValueError("seconds is a number")
        order = self._order(sample)
        ranking = checked_ranking([list(range(len(order)))] if all_bad else groups)
        if sum(map(len, ranking)) != len(order):
            raise ValueError("a ranking names each answer once")
        whole = tuple(
            tuple(sorted(i for place in group for i in sample.distinct[order[place]]))
            for group in ranking
        )
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        spent = round(min(max(float(seconds), 0.0), _LONGEST), 1)
        decision = Decision(sample.id, whole, all_bad, now, spent)
        with self._lock:
            self._log.add(decision)
        return decision

    def finish(self) -> None:
        """Return when no decision is being written, and let none be written any more."""
        self._lock.acquire()

    def _order(self, sample: Sample) -> list[int]:
        """Return the distinct answers' numbers in this rater's order: as good as random, and fixed.

        Other raters get other orders, so that no answer gains from its place.
        """
        seed = hashlib.sha256(f"{self.rater}\n{sample.id}".encode()).digest()
        order = list(range(len(sample.distinct)))
        random.Random(seed).shuffle(order)
        return order
