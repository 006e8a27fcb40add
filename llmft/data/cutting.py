"""Texts longer than a row: cut into pieces of which none is lost, alone or one after another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from llmft.api import Encoded


def split(rows: Iterable[Encoded], limit: int, remarks: Counter[str]) -> Iterator[Encoded]:
    """Yield the rows, one longer than `limit` tokens as several.

    Every token is in one piece; the first one of a piece is never predicted, as of any row. So a
    last piece of one token is left out, and counted. remarks: gets what a person should know.
    """
    for row in rows:
        size = len(row.input_ids)
        if size <= limit:
            yield row
            continue
        remarks[f"rows longer than {limit:,} tokens, cut into pieces that are all kept"] += 1
        for start in range(0, size, limit):
            if size - start == 1:
                remarks["last tokens that stand alone in their piece, and are left out"] += 1
                continue
            remarks["pieces of such rows"] += 1
            yield piece(row, start, start + limit)


def wrap(
    rows: Iterable[Encoded], limit: int, remarks: Counter[str], *, joined: bool
) -> Iterator[Encoded]:
    """Yield the pieces of chunks: the rows one after another, cut every `limit` tokens.

    joined: a chunk is one row, whose tokens see all before them (TRL's pack_dataset, `wrapped`);
    else its pieces are rows of their own, in order, which fill it. The last chunk may be shorter:
    it is kept unless nothing in it is trained on. An item has the origin of its first token.
    """
    chunk: list[Encoded] = []
    room = limit
    chunks = cut = 0
    for row in rows:
        start, size = 0, len(row.input_ids)
        while start < size:
            part = piece(row, start, start + room)
            start += len(part.input_ids)
            room -= len(part.input_ids)
            chunk.append(part)
            if not room:
                yield from _chunk(chunk, joined)
                chunks += 1
                cut += start < size
                chunk, room = [], limit
    remarks[f"chunks of {limit:,} tokens, filled by rows one after another"] += chunks
    remarks["chunks that end inside a row, which goes on in the next one"] += cut
    if chunk:
        trained = any(part.n_labels for part in _chunk(chunk, joined))
        kept = "kept" if trained else "left out: nothing in it is predicted"
        remarks[f"tokens in a last, shorter chunk, which is {kept}"] += limit - room
        if trained:
            yield from _chunk(chunk, joined)
    remarks += Counter()  # what was met not once is no remark


def piece(row: Encoded, start: int, end: int) -> Encoded:
    """Return the tokens of a row from `start` to `end` as a row; the same one where it is whole."""
    if start <= 0 and end >= len(row.input_ids):
        return row
    return Encoded(row.input_ids[start:end], row.labels[start:end], row.origin)


def _chunk(parts: list[Encoded], joined: bool) -> list[Encoded]:
    if not joined or len(parts) < 2:
        return parts
    ids = tuple(token for part in parts for token in part.input_ids)
    labels = tuple(label for part in parts for label in part.labels)
    return [Encoded(ids, labels, parts[0].origin)]
