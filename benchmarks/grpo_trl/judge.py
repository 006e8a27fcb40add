"""The mean reward of a policy on the held-out prompts: `python judge.py TASK_FOLDER POLICY`."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmft.api import SamplingParams
from llmft.modeling.decoding import decode
from llmft.registry.registry import Registry


def main() -> None:
    """Print the mean of the weighted rewards of one answer to each prompt, at temperature 1."""
    folder, policy = Path(sys.argv[1]), sys.argv[2]
    task = json.loads((folder / "task.json").read_text("utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(policy)
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32).eval()
    rows = [json.loads(line) for line in (folder / "held_out.jsonl").read_text().splitlines()]
    prompts = [tokenizer(row["prompt"]).input_ids for row in rows]
    params = SamplingParams(task["length"], stop_token_ids=(tokenizer.eos_token_id,))
    answers = decode(model, prompts, params, batch_size=64)
    said = [tokenizer.decode(answer.ids, skip_special_tokens=True) for answer in answers]
    total = 0.0
    for block in task["rewards"]:
        cls = Registry.discover().method("reward", block["method"])
        made = cls(cls.Config(**block))
        scores = [
            made.score(row["prompt"], text, row["aliases"])
            for row, text in zip(rows, said, strict=True)
        ]
        total += block.get("weight", 1.0) * statistics.fmean(scores)
    print(total)


if __name__ == "__main__":
    main()
