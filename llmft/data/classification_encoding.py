"""Rows to classify as token rows that keep their class: a text as tokenizers give it, or a chat."""

from __future__ import annotations

from collections.abc import Sequence

from llmft.api import ClassificationRow, Encoded, EncodedClassification, Row
from llmft.api.errors import DataError
from llmft.api.rows import IGNORED
from llmft.api.train_settings import TrainSettings
from llmft.data.encoding import Encoder
from llmft.data.encoding_report import EncodingReport
from llmft.data.pair_encoding import cut_at_start

_SPELLED = "rows with special tokens in their text, which stay text"


def encode_classification(
    encoder: Encoder, rows: Sequence[Row], settings: TrainSettings, *, refuse: bool = True
) -> tuple[list[EncodedClassification], EncodingReport]:
    """Return the rows that can be classified, and the count of those cut or dropped.

    A text too long loses its end, of two texts the longer one, as tokenizers truncate them; a
    conversation loses its start (but the token that begins every text stays).
    Raises DataError as `Encoder.encode` does, and at a row of another kind.
    """
    report = EncodingReport(rows=len(rows))
    kept = []
    for row in rows:
        if not isinstance(row, ClassificationRow):
            raise DataError("E105", f"{row.origin}: a {type(row).__name__} has no class")
        report.remarks[_SPELLED] += encoder.spells_special(row)
        if ids := classified_ids(encoder, row, settings.on_long_row, report):
            none = (IGNORED,) * len(ids)
            kept.append(EncodedClassification(tuple(ids), none, row.origin, row.label))
    report.remarks = +report.remarks  # without those that were never met
    report.kept = len(kept)
    if refuse:
        report.refuse_losses(settings)
    return kept, report


def classified_ids(
    encoder: Encoder, row: ClassificationRow, rule: str, report: EncodingReport
) -> Sequence[int]:
    """Return a row's ids within the encoder's maximal length; none: it is dropped.

    rule: the stage's `on_long_row`. report: counts what is cut or dropped, and why.
    """
    limit = encoder.max_length
    ids: Sequence[int] = encoder.class_ids(_shortened(encoder, row, rule))
    if not ids:
        report.count("dropped, no token", row.origin)
    if limit is None or len(ids) <= limit:
        return ids
    if rule == "fail":
        raise DataError(
            "E106",
            f"{row.origin}: the row has {len(ids)} tokens, more than {limit}",
            fix="raise train.max_length, or set train.on_long_row to truncate or drop",
        )
    if rule == "drop":
        report.count("dropped, too long", row.origin)
        return ()
    if isinstance(row.prompt, str):
        report.count("truncated", row.origin)
        return encoder.class_ids(_shortened(encoder, row, rule), limit)
    report.count("with the start of the conversation cut", row.origin)
    whole = Encoded(tuple(ids), (IGNORED,) * len(ids), row.origin)
    return cut_at_start(whole, limit, encoder.tokenizer.bos_token_id).input_ids


def _shortened(encoder: Encoder, row: ClassificationRow, rule: str) -> ClassificationRow:
    """Return a row whose texts hold more tokens than are kept still, and not many times as many."""
    if rule == "fail" or not isinstance(row.prompt, str):
        return row
    cut = [
        text if text is None else encoder.shorten.prompt(text, encoder.max_length, end=False)
        for text in (row.prompt, row.text_pair)
    ]
    text, pair = cut
    assert isinstance(text, str)
    assert not isinstance(pair, tuple)
    return ClassificationRow(text, row.label, pair, row.origin)
