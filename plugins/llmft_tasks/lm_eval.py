"""Tasks of EleutherAI's lm-evaluation-harness, asked of the policy that `start_from` names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llmft.api import Field, Line, Refusal, StageContext, StageResult, Task, TaskConfig, hookimpl
from llmft.toolkit import Harness, harness_scores, write_json, write_jsonl


class LmEval(Task["LmEval.Config"]):
    """Scores the policy that `start_from` names, or the base, on tasks of lm-evaluation-harness.

    The harness (`pip install lm-eval`) computes its own prompts and scores; `lm_eval.json` in the
    stage's folder is what it found, and `rows.jsonl` has a line for each document. An interrupted
    stage goes on from the answers that it has.
    """

    method = "lm_eval"
    produces = "scores"

    class Config(TaskConfig):
        """Which tasks, by the harness's names and settings."""

        tasks: list[Line] = Field(
            min_length=1,
            max_length=1000,
            description="tasks, groups or tags, by name",
        )
        num_fewshot: int | None = Field(
            None, ge=0, le=1000, description="examples before each question; default: the task's"
        )
        limit: float | None = Field(
            None,
            gt=0,
            le=100_000_000,
            description="documents of each task; below 1: that share of them; default: all",
        )
        apply_chat_template: bool = Field(
            False, description="ask through the model's chat template, as in training"
        )
        fewshot_as_multiturn: bool = Field(
            True, description="with the chat template, examples are turns of the conversation"
        )
        system_instruction: str | None = Field(
            None, max_length=100_000, description="a text that stands before every prompt"
        )
        include_path: Line | None = Field(
            None,
            description="a folder with tasks of your own, as YAML; Python files that they name run"
            " only with --trust file:FILE",
        )

    @property
    def _asked(self) -> Harness:
        settings = self.config.model_dump(exclude={"method", "tasks"})
        return Harness(tuple(self.config.tasks), **settings)

    def code(self) -> Mapping[str, Sequence[str]]:
        return {"include_path": [str(path) for path in self._asked.files.code]}

    def reads(self) -> Mapping[str, str]:
        return self._asked.reads()

    def contacts(self) -> Sequence[str]:
        files = self._asked.files
        if files.complete and files.data:
            return ()
        return ["lm-evaluation-harness fetches the rows of its tasks from the hub"]

    def check(self) -> Iterable[Refusal]:
        from llmft.toolkit import unknown_harness_tasks

        for number, what, fix in unknown_harness_tasks(self._asked):
            yield ("tasks", number), what, fix

    def smoke_overrides(self) -> Mapping[str, Any]:
        return {"limit": 2}

    def run(self, context: StageContext) -> StageResult:
        found = harness_scores(self._asked, context)
        write_json(context.folder / "lm_eval.json", found.results)
        write_jsonl(context.folder / "rows.jsonl", found.rows)
        for remark in found.remarks:
            context.log.note(remark)
        plain = {name: value for name, value in found.metrics.items() if name in found.scores}
        errors = {name: value for name, value in found.metrics.items() if name not in plain}
        return StageResult(
            self.produces, metrics=errors, after=plain, scores={"after": found.scores}
        )


@hookimpl
def llmft_tasks() -> list[type[LmEval]]:
    return [LmEval]
