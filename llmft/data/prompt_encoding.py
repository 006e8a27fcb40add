"""Prompts as token ids, with room left for an answer."""

from __future__ import annotations

from collections.abc import Sequence

from llmft.api import CompletionRow, EncodedPrompt, PromptRow, Row
from llmft.api.errors import DataError
from llmft.api.rows import IGNORED
from llmft.api.train_settings import TrainSettings
from llmft.data.encoding import Encoder
from llmft.data.encoding_report import EncodingReport


def encode_prompts(
    encoder: Encoder,
    rows: Sequence[Row],
    settings: TrainSettings,
    max_new_tokens: int,
    *,
    refuse: bool = True,
) -> tuple[list[EncodedPrompt], EncodingReport]:
    """Return the prompts that can be answered, and the count of those cut or dropped.

    One that leaves no room for `max_new_tokens` within the maximal length loses its start (but the
    token that begins every text stays), unless `on_long_row` says otherwise.
    Raises DataError as `Encoder.encode` does, and where answers fill the whole length.
    """
    limit = encoder.max_length
    room = limit - max_new_tokens if limit is not None else None
    if room is not None and room < 2:
        raise DataError(
            "E106",
            f"an answer of {max_new_tokens} tokens leaves no room for a prompt within {limit}",
            fix="lower max_new_tokens or response_length, or raise train.max_length",
        )
    report = EncodingReport(rows=len(rows))
    most = None if settings.on_long_row == "fail" else limit
    kept = []
    for row in rows:
        prompt = _fitted(_encoded(encoder, row, most), encoder, room, settings.on_long_row, report)
        if prompt is not None:
            kept.append(prompt)
    report.kept = len(kept)
    if refuse:
        report.refuse_losses(settings)
    return kept, report


def _encoded(encoder: Encoder, row: Row, most: int | None) -> EncodedPrompt:
    if isinstance(row, CompletionRow):
        row = PromptRow(row.prompt, row.answers or (row.completion.strip(),), row.origin)
    if not isinstance(row, PromptRow):
        raise DataError("E105", f"{row.origin}: a {type(row).__name__} is no prompt to answer")
    short = encoder.shorten.prompt(row.prompt, most)
    ids = encoder.prompt_ids(short, row.origin)
    if short is not row.prompt and most is not None and len(ids) <= most:
        ids = encoder.prompt_ids(row.prompt, row.origin)
    if not ids:
        raise DataError("E101", f"{row.origin}: the prompt is empty")
    return _prompt(ids, row)


def _prompt(ids: Sequence[int], row: PromptRow | EncodedPrompt) -> EncodedPrompt:
    labels = (IGNORED,) * len(ids)
    return EncodedPrompt(tuple(ids), labels, row.origin, row.prompt, row.answers, row.columns)


def _fitted(
    prompt: EncodedPrompt, encoder: Encoder, room: int | None, rule: str, report: EncodingReport
) -> EncodedPrompt | None:
    ids = prompt.input_ids
    if room is None or len(ids) <= room:
        return prompt
    if rule == "fail":
        raise DataError(
            "E106",
            f"{prompt.origin}: the prompt has {len(ids)} tokens, and the answer leaves {room}",
            fix="raise train.max_length, or set train.on_long_row to truncate or drop",
        )
    if rule == "drop":
        report.count("dropped, too long", prompt.origin)
        return None
    report.count("with the start of the prompt cut", prompt.origin)
    begins = int(ids[0] == encoder.tokenizer.bos_token_id)
    return _prompt((*ids[:begins], *ids[len(ids) - room + begins :]), prompt)
