"""Answers of a policy, several to each prompt, for people or a rule to rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmft.api import (
    ChatRow,
    CompletionRow,
    Conversation,
    DataError,
    Field,
    PreferenceRow,
    Prompt,
    PromptRow,
    Row,
    SamplingParams,
    StageContext,
    StageResult,
    Task,
    TaskConfig,
    UnpairedRow,
    hookimpl,
)
from llmft.toolkit import write_jsonl


class Collect(Task["Collect.Config"]):
    """Samples answers to each prompt from the policy that `start_from` names, or from the base.

    `rows.jsonl` has a line for each prompt: `prompt`, `completions`, and the right `answers` where
    the data set knows them.
    """

    method = "collect"
    rows = ("prompt", "completion", "chat", "preference", "unpaired")
    produces = "samples"

    class Config(TaskConfig):
        """How the answers are sampled, in GenerationConfig's names."""

        num_return_sequences: int = Field(
            4, ge=2, le=26, description="answers sampled for each prompt"
        )
        max_new_tokens: int = Field(
            64, ge=1, le=100_000, description="the most tokens in an answer"
        )
        temperature: float = Field(
            1.0, gt=0, le=100, description="the sampling temperature; higher: more varied"
        )
        top_p: float = Field(
            1.0, gt=0, le=1, description="nucleus sampling: the share of the probability"
        )
        top_k: int = Field(
            0,
            ge=0,
            le=1_000_000,
            description="sample from the most likely tokens, this many; 0: all",
        )

    def max_new_tokens(self) -> int:
        return self.config.max_new_tokens

    def smoke_overrides(self) -> Mapping[str, Any]:
        return {"max_new_tokens": min(self.config.max_new_tokens, 8)}

    def run(self, context: StageContext) -> StageResult:
        asked = [prompt_row(row) for row in context.data.rows()]
        settings = self.config.model_dump(exclude={"method"})
        found = context.sampler.sample([row.prompt for row in asked], SamplingParams(**settings))
        lines = [
            {"prompt": _plain(row.prompt), "completions": texts, "answers": list(row.answers)}
            for row, texts in zip(asked, found, strict=True)
        ]
        write_jsonl(context.folder / "rows.jsonl", lines)
        distinct = sum(len({text.strip() for text in texts}) for texts in found)
        metrics = {
            "prompts": float(len(lines)),
            "answers": float(sum(map(len, found))),
            "distinct_answers": float(distinct),
        }
        return StageResult(self.produces, metrics=metrics)


def prompt_row(row: Row) -> PromptRow:
    """Return what a row asks, and the right answers where it has them."""
    if isinstance(row, PromptRow):
        return row
    if isinstance(row, ChatRow):
        turns = row.messages[:-1] if row.messages[-1]["role"] == "assistant" else row.messages
        return PromptRow(turns, (), row.origin)
    if isinstance(row, CompletionRow | PreferenceRow | UnpairedRow):
        return PromptRow(row.prompt, row.answers, row.origin)
    raise TypeError(f"a {type(row).__name__} asks nothing")


def _plain(prompt: Prompt) -> Any:
    if isinstance(prompt, Conversation) and prompt.tools:
        what = "a prompt has tools, and a line of answers to rank keeps messages only"
        raise DataError("E110", what, fix="take the tools out of the rows")
    return prompt if isinstance(prompt, str) else [dict(turn) for turn in prompt]


@hookimpl
def llmft_tasks() -> list[type[Collect]]:
    return [Collect]
