"""Preference rows as pairs of token rows: one prompt, two answers, no answer ever cut."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from llmft.api import Encoded, EncodedPair, PreferenceRow, Row
from llmft.api.errors import DataError
from llmft.api.rows import IGNORED
from llmft.api.train_settings import TrainSettings
from llmft.data.encoding import Encoder, answers_of
from llmft.data.encoding_report import EncodingReport


def encode_pairs(
    encoder: Encoder, rows: Sequence[Row], settings: TrainSettings, *, refuse: bool = True
) -> tuple[list[EncodedPair], EncodingReport]:
    """Return the pairs that can be learnt from, and the count of those cut or dropped.

    A prompt of more than `max_prompt_length` tokens loses its start, whatever stands there. A pair
    that is too long loses the start of its prompt, the same tokens in both rows (but the token that
    begins every text stays); an answer is never cut, so its end-of-text stays.
    Raises DataError as `Encoder.encode` does.
    """
    report = EncodingReport(rows=len(rows))
    kept = []
    for row in rows:
        if not isinstance(row, PreferenceRow):
            raise DataError("E105", f"{row.origin}: a {type(row).__name__} is no preference")
    groups = [answers_of(row) for row in rows]
    most = None if settings.on_long_row == "fail" else encoder.max_length
    made = encoder.token_rows(groups, "pairs", report.remarks, most)
    for row, (chosen, rejected) in zip(rows, made, strict=True):
        made_pair = _pair(row, *_with_short_prompts((chosen, rejected), settings, report))
        pair = _fitted(made_pair, encoder, settings.on_long_row, report)
        if pair is not None:
            kept.append(pair)
    report.kept = len(kept)
    if refuse:
        report.refuse_losses(settings)
    return kept, report


def _pair(row: Row, chosen: Encoded, rejected: Encoded) -> EncodedPair:
    assert isinstance(row, PreferenceRow)
    shared = _shared(chosen, rejected)
    return EncodedPair(chosen, rejected, shared, row.margin, row.origin)


def _shared(one: Encoded, other: Encoded) -> int:
    """Return how many first tokens two rows share, leaving each one of its own at least."""
    both = zip(one.input_ids, other.input_ids, strict=False)
    same = sum(1 for _ in takewhile(lambda ids: ids[0] == ids[1], both))
    return min(same, len(one.input_ids) - 1, len(other.input_ids) - 1)


def prompt_length(row: Encoded) -> int:
    """Return how many tokens stand before the first that is learnt."""
    return sum(1 for _ in takewhile(lambda label: label == IGNORED, row.labels))


def short_prompt(row: Encoded, most: int | None, prompt: int) -> Encoded:
    """Return a row whose prompt, of `prompt` tokens, keeps its last `most`."""
    return row if most is None or prompt <= most else _without(row, 0, prompt - most)


def _with_short_prompts(
    rows: tuple[Encoded, Encoded], settings: TrainSettings, report: EncodingReport
) -> list[Encoded]:
    most, prompt = settings.max_prompt_length, min(map(prompt_length, rows))
    if most is not None and prompt > most:
        report.count("with the prompt cut to max_prompt_length", rows[0].origin)
    return [short_prompt(row, most, prompt) for row in rows]


def cut_at_start(row: Encoded, limit: int | None, begins: int | None) -> Encoded:
    """Return a row of at most `limit` tokens: its start is cut, but the token `begins` stays."""
    cut = len(row.input_ids) - (limit or len(row.input_ids))
    return _without(row, int(row.input_ids[0] == begins), cut) if cut > 0 else row


def _fitted(
    pair: EncodedPair, encoder: Encoder, rule: str, report: EncodingReport
) -> EncodedPair | None:
    if pair.chosen.input_ids == pair.rejected.input_ids:
        report.count("dropped, both answers are the same", pair.origin)
        return None
    if not (pair.chosen.n_labels and pair.rejected.n_labels):
        report.count("dropped, an answer is empty", pair.origin)
        return None
    limit = encoder.max_length
    longest = max(len(pair.chosen.input_ids), len(pair.rejected.input_ids))
    if limit is None or longest <= limit:
        return pair
    if rule == "fail":
        raise DataError(
            "E106",
            f"{pair.origin}: the pair has {longest} tokens, more than {limit}",
            fix="raise train.max_length, or set train.on_long_row to truncate or drop",
        )
    if rule == "drop":
        report.count("dropped, too long", pair.origin)
        return None
    first = pair.chosen.input_ids[0]
    begins = int(first == encoder.tokenizer.bos_token_id)
    prompt = min(prompt_length(pair.chosen), prompt_length(pair.rejected))
    cut = longest - limit
    if cut > prompt - max(1, begins):
        report.count("dropped, an answer alone is too long", pair.origin)
        return None
    report.count("with the start of the prompt cut", pair.origin)
    chosen, rejected = (_without(row, begins, cut) for row in (pair.chosen, pair.rejected))
    return EncodedPair(chosen, rejected, _shared(chosen, rejected), pair.margin, pair.origin)


def _without(row: Encoded, start: int, count: int) -> Encoded:
    ids, labels = (
        (*tokens[:start], *tokens[start + count :]) for tokens in (row.input_ids, row.labels)
    )
    return Encoded(ids, labels, row.origin)
