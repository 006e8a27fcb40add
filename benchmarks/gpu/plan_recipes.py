"""What `llmft plan --gpu` says of each shipped recipe for a GPU: the lines in the recipes' headers.

    python benchmarks/gpu/plan_recipes.py [RECIPE ...]

Neither models nor data are fetched: a config of the model's published sizes stands in, a tokenizer
of bytes, and rows of an assumed length, as many as the data set has. So the tokens of a row are an
assumption, and it is printed; memory and FLOPs are counted as for any plan.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmft.cli.commands.plan import _about as about
from llmft.modeling.tiny_models import tiny_tokenizer
from llmft.planning.fitting import named_memory
from llmft.planning.planner import RecipePlan, plan_recipe
from llmft.planning.roofline import named_card, on_card
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@dataclass(frozen=True)
class Rows:
    """How many rows a data set has, and about how many tokens their prompts and answers."""

    count: int
    prompt: int
    answer: int


TRIVIA = Rows(138_384, 30, 6)
ULTRAFEEDBACK = Rows(62_135, 150, 300)
NO_ROBOTS = Rows(9_500, 80, 220)
GSM8K = Rows(7_473, 100, 0)
STORIES = Rows(50_000, 0, 220)

RECIPES: dict[str, tuple[str, str, tuple[Rows, ...]]] = {
    "dora_triviaqa": ("llama", "RTX 4090", (TRIVIA,)),
    "dpo_8b_qlora": ("llama", "RTX 4090", (ULTRAFEEDBACK,)),
    "orpo_8b_qlora": ("llama", "RTX 4090", (ULTRAFEEDBACK,)),
    "reward_8b_qlora": ("llama", "RTX 4090", (ULTRAFEEDBACK,)),
    "lora_gemma3_1b_16gb": ("gemma3", "RTX 4080", (NO_ROBOTS,)),
    "qlora_qwen3_8b_24gb": ("qwen3", "RTX 4090", (NO_ROBOTS,)),
    "lora_smollm3_3b_48gb": ("smollm3", "L40S", (NO_ROBOTS,)),
    "lora_llama31_8b_80gb": ("llama", "H100", (NO_ROBOTS,)),
    "grpo_gsm8k": ("qwen", "RTX 4090", (GSM8K,)),
    "gkd_gsm8k": ("qwen", "RTX 4090", (GSM8K,)),
    "full_triviaqa": ("gpt2", "RTX 3090", (TRIVIA,)),
    "lora_triviaqa": ("gpt2", "RTX 3090", (TRIVIA,)),
    "qlora_triviaqa": ("gpt2", "RTX 3090", (TRIVIA,)),
    "prefix_triviaqa": ("gpt2", "RTX 3090", (TRIVIA,)),
    "ptuning_triviaqa": ("bert", "RTX 3090", (TRIVIA,)),
    "pretrain_tinystories": ("gpt2", "RTX 3090", (STORIES,)),
}
TEACHERS = {"gkd_gsm8k": "qwen 7b"}
HELD_OUT = 1000
SHARE = 16
"""Of so many rows one is written; counts are scaled."""


def model(kind: str, folder: Path) -> Path:
    """Write a folder with a config of the published sizes and a byte tokenizer."""
    from transformers import (
        BertConfig,
        Gemma3TextConfig,
        GPT2Config,
        LlamaConfig,
        Qwen2Config,
        Qwen3Config,
        SmolLM3Config,
    )

    configs: dict[str, Any] = {
        "llama": lambda: LlamaConfig(
            hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, vocab_size=128_256,
            num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=131_072,
            architectures=["LlamaForCausalLM"],
        ),
        "qwen": lambda: Qwen2Config(
            hidden_size=896, intermediate_size=4864, num_hidden_layers=24, vocab_size=151_936,
            num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=True,
            architectures=["Qwen2ForCausalLM"],
        ),
        "qwen 7b": lambda: Qwen2Config(
            hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, vocab_size=152_064,
            num_attention_heads=28, num_key_value_heads=4, architectures=["Qwen2ForCausalLM"],
        ),
        "qwen3": lambda: Qwen3Config(
            hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, vocab_size=151_936,
            num_attention_heads=32, num_key_value_heads=8, head_dim=128,
            max_position_embeddings=40_960, architectures=["Qwen3ForCausalLM"],
        ),
        "gemma3": lambda: Gemma3TextConfig(
            hidden_size=1152, intermediate_size=6912, num_hidden_layers=26, vocab_size=262_144,
            num_attention_heads=4, num_key_value_heads=1, head_dim=256, sliding_window=512,
            max_position_embeddings=32_768, architectures=["Gemma3ForCausalLM"],
        ),
        "smollm3": lambda: SmolLM3Config(
            hidden_size=2048, intermediate_size=11008, num_hidden_layers=36, vocab_size=128_256,
            num_attention_heads=16, num_key_value_heads=4, tie_word_embeddings=True,
            max_position_embeddings=65_536, architectures=["SmolLM3ForCausalLM"],
        ),
        "gpt2": lambda: GPT2Config(architectures=["GPT2LMHeadModel"]),
        "bert": lambda: BertConfig(is_decoder=True, architectures=["BertLMHeadModel"]),
    }  # fmt: skip
    configs[kind]().save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def _written(rows: Rows) -> int:
    return max(rows.count // SHARE, HELD_OUT)


def data(stage: dict[str, Any], rows: Rows, folder: Path) -> dict[str, Any]:
    """Write rows of the assumed lengths, and return the data block that reads them."""
    method = stage["data"]["method"]
    folder.mkdir(parents=True)
    prompt, answer = "a" * max(rows.prompt, 1), "b" * max(rows.answer, 1)
    if method == "preference":
        made = [{"prompt": prompt, "chosen": answer, "rejected": "c" * len(answer)}]
    elif method == "prompts":
        made = [{"prompt": prompt, "answers": ["1"]}]
    elif rows.prompt == 0:
        made = [{"text": answer}]
    else:
        made = [{"prompt": prompt, "completion": answer}]
    kept = made * _written(rows)
    text = "".join(json.dumps(row | {"n": n}) + "\n" for n, row in enumerate(kept))
    (folder / "train.jsonl").write_text(text)
    few = "".join(json.dumps(row) + "\n" for row in kept[:HELD_OUT])
    for split in ("test", "validation"):
        (folder / f"{split}.jsonl").write_text(few)
    block = {"method": method if method in ("preference", "prompts") else "jsonl"}
    if rows.prompt == 0:
        block["columns"] = {"text": "text"}
    return block | {"path": str(folder), "split": "train"}


def lines(name: str, folder: Path) -> list[str]:
    """Return the lines of a recipe's header."""
    import yaml

    kind, gpu, rows = RECIPES[name]
    path = Path(__file__).parents[2] / "recipes" / f"{name}.yaml"
    recipe = yaml.safe_load(path.read_text())
    sets = [f"model.path={json.dumps(str(model(kind, folder / 'model')))}", "trackers=[]"]
    if teacher := TEACHERS.get(name):
        there = json.dumps(str(model(teacher, folder / "teacher")))
        sets.append(f"stages.0.alignment.teacher.path={there}")
    number = 0
    for place, stage in enumerate(recipe["stages"]):
        if "data" in stage and stage["data"]["method"] != "from_stage":
            block = data(stage, rows[number], folder / f"rows-{place}")
            sets.append(f"stages.{place}.data={json.dumps(block)}")
            if stage.get("evaluate"):
                kept = {k: v for k, v in stage["evaluate"].items() if k not in ("split", "holdout")}
                kept["metrics"] = [m for m in kept.get("metrics", ["loss"]) if m != "f1"]
                sets.append(f"stages.{place}.evaluate={json.dumps(kept | {'split': 'test'})}")
            number += 1
    card = named_card(gpu)
    assert card is not None
    plan = _scaled(plan_recipe(load_recipe(path, Registry.discover(), sets), in_ram=False), rows)
    time, room = on_card(plan, card), named_memory(f"{card.memory}GB").room
    need = plan.worst.peak.total
    assert time.whole is not None, time
    whole = time.whole
    said = ", ".join(f"{r.count:,} rows of {r.prompt} + {r.answer} tokens" for r in rows)
    return [
        f"# Planned, not run: {need / 1e9:.1f} GB at its peak"
        f"{'' if need < room else ', WHICH DOES NOT FIT'}, {plan.stages[-1].counts.steps:,} steps;"
        f" on one {card.name}, estimated,",
        f"# {about(whole.likely)} ({about(whole.low)} to {about(whole.high)}). Assumed: {said}.",
    ]


def _scaled(plan: RecipePlan, rows: tuple[Rows, ...]) -> RecipePlan:
    """Return a plan as if all rows had been there, unless its steps are set."""
    stages = []
    for stage, there in zip(plan.stages, rows, strict=True):
        counts = stage.counts
        assert counts is not None
        more = there.count / _written(there)  # of packed rows, several are one item
        steps = counts.steps
        if plan.recipe.stage(stage.name).train.max_steps is None:
            steps = round(steps * more)
        counts = replace(
            counts, rows=round(counts.rows * more), tokens=round(counts.tokens * more),
            items=round(counts.items * more), steps=steps,
        )  # fmt: skip
        stages.append(replace(stage, counts=counts))
    return replace(plan, stages=tuple(stages))


def main() -> int:
    """Print the lines, and return the exit code."""
    for name in sys.argv[1:] or RECIPES:
        with tempfile.TemporaryDirectory() as scratch:
            print(name, *lines(name, Path(scratch)), sep="\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
