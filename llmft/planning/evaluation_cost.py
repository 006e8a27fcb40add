"""The evaluation of a planned stage: its losses, its answers, and the cache they need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from llmft.api import Alignment, Row, ScoredTaskConfig
from llmft.evaluation import evaluation
from llmft.modeling.base_model import max_positions
from llmft.modeling.decoding import dense_attention
from llmft.planning.memory_tracker import CACHE, MemoryTracker
from llmft.recipes.metrics import scores_answers, scores_loss, scores_token_loss

if TYPE_CHECKING:
    from llmft.planning.planned_stage import PlannedStage

PROMPTS = 2000  # looked at to find the longest


def judge(stage: PlannedStage, *, in_training: bool = False) -> None:
    """Compute a stage's evaluation on its heaviest batch, while the memory tracker is entered.

    in_training: between two steps, where answers may be generated rarely or never.
    """
    rows, asked = stage.data.held_out(), stage.spec.evaluate
    if not rows or asked is None:
        return
    stage.state.judging = True
    generates = not in_training or asked.generate_every is not None
    later = " in training" if in_training else ""
    stage.state.memory.begin(f"evaluate{later}")
    if scores_token_loss(asked, stage.work):
        _follow_loss(stage, rows, stage.models.model)
    if isinstance(stage.work, Alignment) and (generates or not stage.work.evaluate_generates):
        stage.work.evaluate(stage)
    if generates and scores_answers(asked):
        stage.state.memory.begin(f"generate{later}")
        _follow_answers(stage, rows, stage.models.model, asked.max_new_tokens)
    stage.state.judging = False


def follow_scores(stage: PlannedStage, asked: ScoredTaskConfig, model: Any, whose: str) -> int:
    """Compute a task's scores of its rows on the heaviest batch, while the tracker is entered.

    whose: ends the names of the phases. Return how many answers are generated at a time; 0: none.
    """
    state, rows, size = stage.state, stage.data.rows(), 0
    state.judging = True
    if scores_loss(asked):
        state.memory.begin(f"evaluate{whose}")
        _follow_loss(stage, () if state.assumed else rows, model)
    if scores_answers(asked):
        state.memory.begin(f"generate{whose}")
        size = _follow_answers(stage, rows, model, asked.max_new_tokens)
    state.judging = False
    return size


def _follow_loss(stage: PlannedStage, rows: Sequence[Row], model: Any) -> None:
    chunk = stage.data.encode(evaluation.as_answered(rows))
    evaluation.mean_loss(model, chunk, max(len(chunk), 1))


def _follow_answers(stage: PlannedStage, rows: Sequence[Row], model: Any, new: int) -> int:
    """Let the answers to the longest prompts grow their cache; return how many those are."""
    prompts = evaluation.asked_prompts(rows[:PROMPTS])
    asked = [len(stage.data.encoder.prompt_ids(prompt)) for prompt in prompts]
    lengths = sorted(asked, reverse=True)[: stage.train.per_device_eval_batch_size]
    grow_cache(model, stage.state.memory, lengths, new)
    return len(lengths)


def grow_cache(model: Any, memory: MemoryTracker, lengths: Sequence[int], new: int) -> None:
    """Read prompts of these lengths into a cache, and let it grow to the end of the answers."""
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    virtual = getattr(model, "n_virtual", 0)
    room = max_positions(base.config)
    width = min(lengths[0], room - new - virtual) if room else lengths[0]
    width = max(width, 1) + virtual
    ids = torch.ones(len(lengths), width, dtype=torch.long)
    mask = torch.ones_like(ids)
    for row, length in enumerate(lengths):
        mask[row, : max(width - virtual - length, 0)] = 0
    keep = {"logits_to_keep": 1} if _keeps(base) else {}
    with dense_attention(model), torch.no_grad():
        out = base(input_ids=ids, attention_mask=mask, use_cache=True, **keep)
    layers = list(_cache_tensors(out.past_key_values))
    for tensor in layers:
        memory.add(tensor, CACHE)
    del out
    held = memory.live[CACHE]
    memory.claim(CACHE, held)
    # Each layer's keys are copied to grow by one: the last cache, and one layer's tensor twice.
    grown = held * (width + new) // width
    memory.note(CACHE, grown - held + grown // max(len(layers), 1))


def _keeps(base: Any) -> bool:
    import inspect

    return "logits_to_keep" in inspect.signature(base.forward).parameters


def _cache_tensors(cache: Any) -> Sequence[torch.Tensor]:
    found = []
    for layer in getattr(cache, "layers", ()):
        found += [t for t in (getattr(layer, "keys", None), getattr(layer, "values", None))
                  if isinstance(t, torch.Tensor)]  # fmt: skip
    return found
