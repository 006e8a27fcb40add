"""The preview of a running stage, for the page in its folder and for `llmft preview`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llmft.api import Alignment, Row
from llmft.api.errors import Fault
from llmft.data.encoding import Encoder
from llmft.data.preview import PICKS, Seen, StagePreview, stage_preview
from llmft.data.shown_rows import Item
from llmft.engine.stage_data import TrainedOn, mixture_note, unread_note
from llmft.recipes.job import BoundStage
from llmft.recipes.sources import source_names

if TYPE_CHECKING:
    from llmft.engine.stage import StageRunner

PAGE = "preview.html"
"""The page in a stage's folder."""
ROWS_ON_PAGE = 5
"""Rows of each kind that it shows."""


def preview_of(
    stage: StageRunner,
    made: TrainedOn,
    items: Sequence[Any] | None,
    *,
    picks: int,
    only: Sequence[str] = PICKS,
    refused: Fault | None = None,
) -> StagePreview:
    """Return a running stage's preview. items: what it trains on, where they are of known kinds."""
    encoder = Encoder(stage.models.tokenizer, None, stage.data.encoder.chat)

    def uncut(rows: Sequence[Row]) -> Sequence[Item]:
        whole: Sequence[Item] = made.encode(encoder, rows, stage.train, refuse=False)[0]
        return whole

    train, held_out = stage.data.split
    told = {  # the preview says these in its own words
        train.note(), made.report.note(), unread_note(train, held_out),
        stage.data.duplicates.note(), mixture_note(train),
    }  # fmt: skip
    if held_out is not None and not held_out.left_out:
        told.add(held_out.note())
    known = items is not None and all(isinstance(item, Item) for item in items)
    return stage_preview(
        Seen(
            train,
            held_out,
            items if items is not None and known else made.items,
            made.report,
            stage.models.tokenizer,
            stage.data.max_length,
            uncut,
            stage.data.duplicates,
        ),
        picks=picks,
        seed=stage.seed,
        only=only,
        name=stage.name,
        method=method_of(stage.bound),
        data=data_of(stage.bound),
        refused=refused,
        notes=[note for note in stage.log.notes if note not in told],
    )


def method_of(bound: BoundStage) -> str:
    """Return what a stage does, as `plan` says it."""
    if not isinstance(bound.work, Alignment):
        return bound.work.method
    own = bound.spec.adapter
    return f"{own.method if own else 'as before'} x {bound.work.method}"


def data_of(bound: BoundStage) -> str:
    """Return the name of a stage's data set; '' where it has none."""
    if bound.dataset is None or bound.spec.data is None:
        return ""
    names = source_names(bound.spec.data)
    return f"{bound.dataset.method} of {', '.join(names)}" if names else bound.dataset.method
