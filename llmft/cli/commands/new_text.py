"""The text of a first recipe: its stages, sizes and comments, for a form of rows and a goal."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from llmft.api.shown_text import on_one_line
from llmft.data.forms import Form, Goal
from llmft.importing.writing import comment, yaml

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
"""A chat template for a model that has none."""

LAYERED = ("lora", "qlora", "dora")
RATES = {"sft": 2e-4, "dpo": 5e-6, "kto": 5e-6, "reward": 1e-4, "ppo": 1e-5, "classification": 2e-4}
"""Learning rates that are usual for LoRA; all weights take a tenth, soft prompts a hundredfold."""
_ANSWER_TOKENS = 128
_WIDTH = 96


@dataclass(frozen=True)
class Sizes:
    """How large a run is.

    rows: of the file; skipped: how many of them cannot be used. longest: of them, in tokens; cut:
    how many are longer than a row may be, which is room. fits: whether the run fits this machine's
    memory.
    """

    rows: int
    skipped: int = 0
    longest: int = 0
    cut: int = 0
    room: int = 0
    max_length: int | None = None
    batch: int = 8
    accumulation: int = 1
    checkpointing: bool = False
    gpu: bool = False
    fits: bool = True

    @property
    def epochs(self) -> int:
        """Passes over the rows: three where there are few."""
        return 3 if self.usable < 10_000 else 1

    @property
    def holdout(self) -> float | None:
        """The share that is kept for scores: a tenth, and less of many; None of a handful."""
        if self.usable < 10:
            return None
        return 0.1 if self.usable <= 2_000 else max(round(200 / self.usable, 3), 0.001)

    @property
    def usable(self) -> int:
        """The rows that can be used."""
        return self.rows - self.skipped

    def smaller(self) -> Sizes | None:
        """Return the next sizes to try where these do not fit; None after the last."""
        if self.batch > 1:
            return replace(self, batch=self.batch // 2, accumulation=self.accumulation * 2)
        return None if self.checkpointing else replace(self, checkpointing=True)


@dataclass(frozen=True)
class Wish:
    """What is to be trained.

    template: whether the model has a chat template. skip: whether rows are left out that cannot be
    used.
    """

    name: str
    model: str
    data: str
    form: Form
    goal: Goal
    adapter: str
    template: bool
    skip: bool = False

    @property
    def chat(self) -> bool:
        """Whether texts become turns of a conversation."""
        return self.template and not self.form.spoken and self.form.name != "text"


def recipe_text(wish: Wish, sizes: Sizes, origin: str) -> str:
    """Return the recipe. origin: the file it is written to, for the commands in its comment."""
    origin = on_one_line(shlex.quote(origin))
    said = f"{wish.form.said[0].upper()}{wish.form.said[1:]}: {sizes.rows:,} rows of {wish.data}."
    lines = _comment(said)
    if wish.form.unread:
        lines += _comment(f"Not read: {', '.join(map(on_one_line, wish.form.unread))}.")
    lines += [
        f"#   llmft preview {origin}   shows the rows as they are trained on",
        f"#   llmft plan {origin}      predicts steps, time, memory and files",
        f"#   llmft run {origin}       trains, with scores before and after",
    ]
    lines += ["recipe: 1", f"name: {yaml(wish.name)}", "seed: 17", *_model(wish, sizes), "stages:"]
    for stage in _stages(wish):
        lines += ["", *_stage(wish, sizes, *stage)]
    return "\n".join(lines).replace("stages:\n\n", "stages:\n") + "\n"


def _comment(text: str, indent: str = "") -> list[str]:
    return comment(text, indent, _WIDTH)


def _model(wish: Wish, sizes: Sizes) -> list[str]:
    lines = ["model:", f"  path: {yaml(wish.model)}"]
    if sizes.gpu:
        lines.append("  dtype: bfloat16")
    if wish.form.spoken and not wish.template:
        lines += _comment(
            "The model has no chat template: this is a plain one. A model's name, such as"
            " Qwen/Qwen3-0.6B, takes that model's.", "  ",
        )  # fmt: skip
        lines.append(f"  chat_template: {yaml(PLAIN_TEMPLATE)}")
    return lines


def _stages(wish: Wish) -> list[tuple[str, str, str, Mapping[str, Any]]]:
    """Return for each stage its alignment, what it starts from, its data set, and that's settings.

    A stage has the name of its alignment.
    """
    form, chat = wish.form, {"chat": True} if wish.chat else {}
    own = {**form.settings, **chat}
    asked = form.prompt
    if form.prompt and not wish.chat and form.name != "instruction":
        asked = f"{{{form.prompt}}}\n"  # an answer in plain text begins a line
        own["columns"] = {**form.settings.get("columns", {}), "prompt": asked}
    if wish.goal == "sft":
        if form.name == "instruction" and not wish.chat and not form.spoken:
            own["prompt_style"] = "alpaca"
        return [("sft", "", form.method, own)]
    if wish.goal == "preferences":
        return [("kto" if form.name == "unpaired" else "dpo", "", form.method, own)]
    if wish.goal == "reward":
        return [("reward", "", form.method, own)]
    if wish.goal == "classification":
        return [("classification", "", form.method, dict(form.settings))]
    prompt = {} if asked == "prompt" else {"prompt": asked}
    prompts = {"columns": prompt} if prompt else {}
    return [
        ("sft", "", "jsonl", {"columns": {**prompt, "completion": form.answer}, **chat}),
        ("reward", "", form.method, own),
        ("ppo", "sft", "prompts", {**prompts, **chat}),
    ]


_WHY = {
    "sft": "",
    "dpo": "Learns from pairs. A model that was never taught to answer needs an sft stage first.",
    "kto": "Learns from single answers that are judged good or bad.",
    "reward": "A reward model: it scores answers, and generates none.",
    "classification": "A classifier: it tells the class of a text, and generates none.",
    "ppo": "The policy is trained by the reward model's scores of its own answers.",
}


def _stage(
    wish: Wish, sizes: Sizes, kind: str, start: str, method: str, settings: Mapping[str, Any]
) -> list[str]:
    lines = _comment(_WHY[kind], "  ") if _WHY[kind] else []
    lines.append(f"  - name: {kind}")
    if start:
        lines.append(f"    start_from: {start}")
    else:
        rank = {"r": 16, "lora_alpha": 32} if wish.adapter in LAYERED else {}
        lines.append(f"    adapter: {yaml({'method': wish.adapter, **rank})}")
    alignment: dict[str, Any] = {"method": kind}
    if kind == "ppo":
        alignment |= {"reward_model": "reward", "response_length": _ANSWER_TOKENS}
    lines += [f"    alignment: {yaml(alignment)}", "    data:", f"      method: {method}"]
    lines.append(f"      path: {yaml(wish.data)}")
    for key, value in settings.items():
        why = "  # by the model's chat template" if key == "chat" else ""
        lines.append(f"      {key}: {yaml(value)}{why}")
    if wish.skip:
        lines.append(
            f"      on_bad_row: skip  # {sizes.skipped:,} rows cannot be used: see preview"
        )
    return [*lines, *_train(wish, sizes, kind), *_evaluate(sizes, kind)]


def _train(wish: Wish, sizes: Sizes, kind: str) -> list[str]:
    epochs = sizes.epochs if kind in ("sft", "classification") else 1
    lines = ["    train:", f"      num_train_epochs: {epochs}"]
    lines.append(f"      learning_rate: {_rate(kind, wish.adapter)}  # usual for {wish.adapter}")
    lines += ["      lr_scheduler_type: cosine", "      warmup_ratio: 0.03"]
    lines.append(f"      per_device_train_batch_size: {sizes.batch}")
    if sizes.accumulation > 1:
        lines.append(f"      gradient_accumulation_steps: {sizes.accumulation}  # to fit memory")
    if sizes.checkpointing:
        lines.append("      gradient_checkpointing: true  # to fit memory")
    if sizes.gpu:
        lines.append("      bf16: true")
    if sizes.max_length:
        answer = _ANSWER_TOKENS if kind == "ppo" else 0
        most = min(sizes.max_length + answer, max(sizes.room, sizes.max_length))
        why = f"the longest row has {sizes.longest}" + (", and an answer" if answer else "")
        if sizes.cut:
            why = f"{sizes.cut:,} of {sizes.rows:,} rows are longer, and cut"
        lines.append(f"      max_length: {most}  # {why}")
    return lines


def _rate(kind: str, adapter: str) -> str:
    times = 1.0 if adapter in LAYERED else 0.1 if adapter == "full" else 100.0
    mantissa, _, power = f"{RATES[kind] * times:.0e}".partition("e")
    return f"{mantissa}e{int(power)}"


def _evaluate(sizes: Sizes, kind: str) -> list[str]:
    if sizes.holdout is None:
        return _comment("Too few rows to keep some for scores: evaluate: {holdout: 0.1}", "    ")
    asked: dict[str, Any] = {"metrics": [] if kind in ("reward", "ppo") else ["loss"]}
    return [f"    evaluate: {yaml({**asked, 'holdout': sizes.holdout})}"]
