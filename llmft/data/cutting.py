"""Texts of any length as rows: cut into pieces of which nothing is lost, alone or end to end."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import overload

from llmft.api import Encoded

Part = tuple[Sequence[int], str, bool]
"""Tokens of a text, the text's origin, and whether they are its last ones."""


class Pieces(Sequence[Encoded]):
    """Texts as rows of at most `limit` tokens, in order; every token of them is learnt.

    Tokens are held in 4 bytes each, and a row is made when it is asked for, so that a corpus takes
    no more memory than its text. remarks: what a person should know. dropped: the origins of texts
    of one token: the first token of a row is never predicted.
    """

    def __init__(
        self, texts: Iterable[Part], limit: int, *, wrap: bool = False, joined: bool = False
    ) -> None:
        """Cut texts.

        wrap: they stand one after another and are cut every `limit` tokens, as in TRL's
        pack_dataset; the pieces between two cuts are a chunk. Without it each text is cut by
        itself. joined: a chunk is one row, whose tokens see all before them; else each of its
        pieces is. The last chunk may be shorter. It is kept unless nothing in it is predicted.
        """
        self.limit = limit
        self.remarks: Counter[str] = Counter()
        self.dropped: list[str] = []
        self._tokens = array("i")
        self._ends = array("q", [0])
        self._origins: list[str] = []
        self._origin = ""  # of the first token of the piece that is not ended
        if wrap:
            self._wrap(texts, joined)
        else:
            self._split(texts)
        self.remarks += Counter()  # what was met not once is no remark

    def _split(self, texts: Iterable[Part]) -> None:
        met, first = self.remarks, 0
        for ids, origin, is_last in texts:
            self._add(ids, origin, self.limit - self._open)
            if not is_last:
                continue
            self._end()
            if len(self) > first and self._ends[-1] - self._ends[-2] == 1:
                self._take_back()
                if len(self) > first:
                    met["last tokens that stand alone in their piece, and are left out"] += 1
                else:
                    self.dropped.append(origin)
            if len(self) - first > 1:
                met[f"rows longer than {self.limit:,} tokens, cut into pieces"] += 1
                met["pieces of such rows"] += len(self) - first
            first = len(self)

    def _wrap(self, texts: Iterable[Part], joined: bool) -> None:
        met, room, goes_on = self.remarks, self.limit, False
        for ids, origin, is_last in texts:
            if ids and goes_on and room == self.limit:
                met["chunks that end inside a row, which goes on in the next one"] += 1
            if ids:
                inside = (len(ids) - room - 1) // self.limit + 1 if len(ids) > room else 0
                met["chunks that end inside a row, which goes on in the next one"] += inside
            room = self._add(ids, origin, room)
            goes_on = not is_last
            if is_last and not joined:
                self._end()
        self._end()
        chunks, rest = divmod(len(self._tokens), self.limit)
        met[f"chunks of {self.limit:,} tokens, filled by rows one after another"] += chunks
        if rest:
            begin = chunks * self.limit
            last = [end for end in self._ends[-rest - 1 :] if end > begin]
            is_kept = any(b - a > 1 for a, b in zip([begin, *last], last, strict=False))
            kept = "kept" if is_kept else "left out: nothing in it is predicted"
            met[f"tokens in a last, shorter chunk, which is {kept}"] += rest
            for _ in last if not is_kept else ():
                self._take_back()

    @property
    def _open(self) -> int:
        return len(self._tokens) - self._ends[-1]

    def _add(self, ids: Sequence[int], origin: str, room: int) -> int:
        """Add tokens, the first `room` of them to the open piece; return the room that is left."""
        at = 0
        while at < len(ids):
            if not self._open:
                self._origin = origin
            taken = ids[at : at + room]
            self._tokens.extend(taken)
            at, room = at + len(taken), room - len(taken)
            if not room:
                self._end()
                room = self.limit
        return room

    def _end(self) -> None:
        if self._open:
            self._ends.append(len(self._tokens))
            self._origins.append(self._origin)

    def _take_back(self) -> None:
        self._ends.pop()
        self._origins.pop()
        del self._tokens[self._ends[-1] :]

    def lengths(self) -> list[int]:
        """Return how many tokens each row has."""
        return [end - begin for begin, end in zip(self._ends, self._ends[1:], strict=False)]

    def __len__(self) -> int:
        return len(self._origins)

    @overload
    def __getitem__(self, key: int) -> Encoded: ...
    @overload
    def __getitem__(self, key: slice) -> list[Encoded]: ...
    def __getitem__(self, key: int | slice) -> Encoded | list[Encoded]:
        if isinstance(key, slice):
            return [self[number] for number in range(*key.indices(len(self)))]
        number = range(len(self))[key]
        ids = tuple(self._tokens[self._ends[number] : self._ends[number + 1]])
        return Encoded(ids, ids, self._origins[number])
