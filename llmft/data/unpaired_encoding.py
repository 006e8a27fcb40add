"""Unpaired rows as token rows that keep their label: one prompt, one answer, which is never cut."""

from __future__ import annotations

from collections.abc import Sequence

from llmft.api import EncodedUnpaired, PreferenceRow, Row, UnpairedRow
from llmft.api.errors import DataError
from llmft.api.train_settings import TrainSettings
from llmft.data.encoding import Encoder, answers_of
from llmft.data.encoding_report import EncodingReport
from llmft.data.pair_encoding import cut_at_start, prompt_length, short_prompt


def encode_unpaired(
    encoder: Encoder, rows: Sequence[Row], settings: TrainSettings, *, refuse: bool = True
) -> tuple[list[EncodedUnpaired], EncodingReport]:
    """Return the rows that can be learnt from, and the count of those cut or dropped.

    Of preferences, both answers are taken: see `unpaired`. A prompt of more than
    `max_prompt_length` tokens loses its start, whatever stands there. A row that is too long loses
    the start of its prompt (but the token that begins every text stays); an answer is never cut, so
    its end-of-text stays. Raises DataError as `Encoder.encode` does.
    """
    labelled = unpaired(rows)
    report = EncodingReport(rows=len(labelled))
    kept = []
    groups = [answers_of(row) for row in labelled]
    most = None if settings.on_long_row == "fail" else encoder.max_length
    made = encoder.token_rows(groups, "unpaired", report.remarks, most)
    for row, (encoded,) in zip(labelled, made, strict=True):
        most_of_prompt, prompt = settings.max_prompt_length, prompt_length(encoded)
        if most_of_prompt is not None and prompt > most_of_prompt:
            report.count("with the prompt cut to max_prompt_length", row.origin)
            encoded = short_prompt(encoded, most_of_prompt, prompt)
        whole = EncodedUnpaired(encoded.input_ids, encoded.labels, row.origin, row.label)
        fitted = _fitted(whole, encoder, settings.on_long_row, report)
        if fitted is not None:
            kept.append(fitted)
    report.kept = len(kept)
    if refuse:
        report.refuse_losses(settings)
    return kept, report


def unpaired(rows: Sequence[Row]) -> list[UnpairedRow]:
    """Return unpaired rows as they are; preferences as good answers, followed by the bad ones.

    The order is that of TRL's `unpair_preference_dataset` within 1,000 pairs. Raises DataError at a
    row of another kind.
    """
    good, bad = [], []
    for row in rows:
        if isinstance(row, UnpairedRow):
            good.append(row)
        elif isinstance(row, PreferenceRow):
            good.append(UnpairedRow(row.prompt, row.chosen, True, row.answers, row.origin))
            bad.append(UnpairedRow(row.prompt, row.rejected, False, row.answers, row.origin))
        else:
            raise DataError("E105", f"{row.origin}: a {type(row).__name__} has no label")
    return [*good, *bad]


def _fitted(
    row: EncodedUnpaired, encoder: Encoder, rule: str, report: EncodingReport
) -> EncodedUnpaired | None:
    limit, length = encoder.max_length, len(row.input_ids)
    if not row.n_labels:
        report.count("dropped, the answer is empty", row.origin)
        return None
    if limit is None or length <= limit:
        return row
    if rule == "fail":
        raise DataError(
            "E106",
            f"{row.origin}: the row has {length} tokens, more than {limit}",
            fix="raise train.max_length, or set train.on_long_row to truncate or drop",
        )
    if rule == "drop":
        report.count("dropped, too long", row.origin)
        return None
    begins = encoder.tokenizer.bos_token_id
    if length - limit > prompt_length(row) - max(1, int(row.input_ids[0] == begins)):
        report.count("dropped, the answer alone is too long", row.origin)
        return None
    report.count("with the start of the prompt cut", row.origin)
    cut = cut_at_start(row, limit, begins)
    return EncodedUnpaired(cut.input_ids, cut.labels, row.origin, row.label)
