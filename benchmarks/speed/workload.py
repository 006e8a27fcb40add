"""What is trained: a small Llama, rows of skewed lengths, a task's settings. Imports no torch.

Every contestant gets the same folder: `model/`, `rows.jsonl`, `task.json`.
"""

from __future__ import annotations

import json
import math
import random
import string
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes; `vocabulary` counts rows of the embedding, which the head shares if tied."""

    hidden: int = 288
    intermediate: int = 768
    layers: int = 6
    heads: int = 6
    kv_heads: int = 6
    vocabulary: int = 32_000
    positions: int = 1024
    tied: bool = True


@dataclass(frozen=True)
class Task:
    """A training run: what is learnt by which method, from how many rows of which lengths.

    lengths: the shortest and the longest row in tokens; drawn log-uniformly, so most are short.
    dropout: LoRA's; every program draws its masks otherwise, so that only llmft is timed with it.
    answer: the share of a row that is learnt. dtype, in_4bit: how the base is stored. bf16: whether
    autocast computes in bfloat16.
    unused: rows that are read and tokenised, and not trained on. tolerance: how far the losses of a
    step may be apart, as a share; float32 sums in another order drift, and bfloat16 rounds them.
    """

    name: str
    alignment: str
    steps: int
    adapter: str = "lora"
    in_4bit: bool = False
    dtype: str = "float32"
    bf16: bool = False
    batch: int = 4
    accumulation: int = 2
    lengths: tuple[int, int] = (20, 400)
    answer: float = 0.33
    rank: int = 8
    dropout: float = 0.0
    rate: float = 1e-3
    unused: int = 0
    tolerance: float = 2e-3
    shape: Shape = Shape()

    @property
    def rows(self) -> int:
        """Rows, or pairs, of the file; all but the unused are trained on once."""
        return self.steps * self.batch * self.accumulation + self.unused

    @property
    def in_pairs(self) -> bool:
        """Whether a row has two answers."""
        return self.alignment != "sft"


LARGE_VOCABULARY = Shape(vocabulary=128_256)
SHAPE_135M = Shape(hidden=576, intermediate=1536, layers=30, heads=9, kv_heads=3, vocabulary=49_152)
"""SmolLM2-135M's. Rows beside it are as long as those of PandaLM and LLMBar, of which nine in ten
have 24 to 451 tokens, and two thirds of them are the answer."""
TASKS = {
    task.name: task
    for task in (
        Task("sft", "sft", steps=30),
        Task("dpo", "dpo", steps=8),
        Task("reward", "reward", steps=8),
        # TRL averages ORPO's loss over the tokens of a batch, the paper over pairs: equal work, and
        # losses nearly so. Where a batch is one pair, they are the same.
        Task("orpo", "orpo", steps=8, tolerance=1e-2),
        Task("orpo-single", "orpo", steps=8, batch=1, accumulation=8),
        Task("dpo-long", "dpo", steps=8, answer=0.75),
        Task("reward-long", "reward", steps=8, answer=0.75),
        Task("dora", "sft", steps=15, adapter="dora"),
        Task("qlora", "sft", steps=15, adapter="qlora", in_4bit=True),
        Task("sft-128k", "sft", steps=6, shape=LARGE_VOCABULARY),
        Task("dpo-128k", "dpo", steps=4, shape=LARGE_VOCABULARY),
        Task("orpo-128k", "orpo", steps=4, tolerance=1e-2, shape=LARGE_VOCABULARY),
        Task("reward-128k", "reward", steps=4, shape=LARGE_VOCABULARY),
    )
}
LARGER = {
    task.name: task
    for task in (
        Task("sft-135m", "sft", 4, lengths=(20, 500), answer=0.65, shape=SHAPE_135M),
        Task("dpo-135m", "dpo", 3, lengths=(20, 500), answer=0.65, shape=SHAPE_135M),
        Task("dpo-135m-prompts", "dpo", 3, lengths=(20, 500), answer=0.35, shape=SHAPE_135M),
        Task("dora-135m", "sft", 3, "dora", lengths=(20, 500), answer=0.65, shape=SHAPE_135M),
        Task("dropout-135m", "sft", 3, dropout=0.1, lengths=(20, 500), answer=0.65,
             shape=SHAPE_135M),
    )
}  # fmt: skip
LARGER |= {
    f"{name}-bf16": replace(task, name=f"{name}-bf16", dtype="bfloat16", bf16=True, tolerance=1e-2)
    for name, task in LARGER.items()
}
"""Tasks at the shape of a model that people use; they take minutes each. In `-prompts` a third of a
row is the answer, in the others two thirds."""
QUICK_STEPS = 3


def quick(task: Task) -> Task:
    """Return a task of a few steps, to try the harness; its figures mean little."""
    return replace(task, steps=min(task.steps, QUICK_STEPS))


def write_task(folder: Path, task: Task) -> None:
    """Write the rows and the task's settings; the model is written by `write_model`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "task.json").write_text(json.dumps(asdict(task)), "utf-8")
    lines = (json.dumps(row) for row in rows(task))
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


def read_task(folder: Path) -> Task:
    """Return what `write_task` wrote."""
    data: dict[str, Any] = json.loads((folder / "task.json").read_text("utf-8"))
    shape = Shape(**data.pop("shape"))
    return Task(**{**data, "lengths": tuple(data["lengths"]), "shape": shape})


def rows(task: Task, seed: int = 0) -> list[dict[str, str]]:
    """Return rows of random letters; a letter is a token, and a text gets one more at its end."""
    draw = random.Random(seed)
    made = []
    for _ in range(task.rows):
        low, high = map(math.log, task.lengths)
        length = round(math.exp(draw.uniform(low, high)))
        answer = max(2, round(length * task.answer))
        prompt = _letters(draw, max(1, length - answer - 1))
        if not task.in_pairs:
            made.append({"prompt": prompt, "completion": _letters(draw, answer)})
            continue
        other = max(2, round(answer * draw.uniform(0.6, 1.0)))
        answers = [_letters(draw, answer), _letters(draw, other)]
        draw.shuffle(answers)
        made.append({"prompt": prompt, "chosen": answers[0], "rejected": answers[1]})
    return made


def _letters(draw: random.Random, count: int) -> str:
    return "".join(draw.choices(string.ascii_lowercase, k=count))


def tokens(task: Task) -> int:
    """Return the tokens of all rows, padding left out; a shared prompt counts for each answer."""
    total = 0
    for row in rows(task):
        prompt = len(row["prompt"])
        answers = [text for key, text in row.items() if key != "prompt"]
        total += sum(prompt + len(text) + 1 for text in answers)
    return total
