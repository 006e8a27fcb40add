"""How long rows take to become token ids, by their form, in seconds of processor time.

python benchmarks/encoding.py [ROWS]
"""

from __future__ import annotations

import os
import random
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ["LLMFT_CACHE"] = "off"
TURNS = (1, 3)
WORDS = "the of and a to in is you that it he was for on are as with his they at be"
TEMPLATES = ("qwen2_5", "llama3")


def processor_seconds() -> float:
    """Return what this process and its children have used: templates are run in one of them."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = time.process_time() + ended.ru_utime + ended.ru_stime
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def main(count: int) -> None:
    """Print a line for each form of row: seconds, and rows in a second."""
    import trl

    from llmft.api import ChatRow, CompletionRow, Row
    from llmft.api.model_settings import ModelSource
    from llmft.api.train_settings import TrainSettings
    from llmft.data.encoding import Encoder
    from llmft.modeling.base_model import BaseModel

    templates = Path(trl.__file__).parent / "chat_templates"
    dice = random.Random(0)
    words = tuple(WORDS.split())

    def text() -> str:
        return " ".join(dice.choices(words, k=dice.randrange(5, 60)))

    def timed(name: str, template: str, make: Callable[[int], Row]) -> None:
        tokenizer = BaseModel(ModelSource(path="embedded:model")).tokenizer
        marks = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|eot_id|>"]
        tokenizer.add_special_tokens({"additional_special_tokens": marks})
        tokenizer.bos_token = marks[0]
        tokenizer.eos_token = "<|im_end|>" if template.startswith("qwen") else "<|eot_id|>"
        tokenizer.chat_template = (templates / f"{template}.jinja").read_text("utf-8")
        rows = [make(number) for number in range(count)]
        started = processor_seconds()
        kept, _ = Encoder(tokenizer, None).encode(rows, TrainSettings())
        seconds = processor_seconds() - started
        tokens = sum(len(row.input_ids) for row in kept)
        print(f"{name:<28} {seconds:7.1f} s {count / seconds:9,.0f} rows/s {tokens:>12,} tokens")

    def chat(turns: int) -> Callable[[int], Row]:
        return lambda n: ChatRow(
            tuple({"role": role, "content": text()} for role in ("user", "assistant") * turns),
            f"rows:{n}",
        )

    for template in TEMPLATES:
        for turns in TURNS:
            timed(f"{template}, {turns} turns", template, chat(turns))
    timed("text prompts", TEMPLATES[0], lambda n: CompletionRow(text(), " " + text()))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
