"""What a trained policy is worth: one piece of code for every contestant.

    python judge.py TASK_FOLDER OUT POLICY...     # plain transformers folders

Each policy answers the held-out prompts at temperature 1, by the same random numbers.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from export import load_reward, reward_of
from task import Task, read_rows, read_task

from llmft.api import SamplingParams
from llmft.assets.remarks import WELCOME
from llmft.modeling.decoding import decode

DRAWS = 2
"""Answers to each prompt."""
BATCH = 64


def main() -> None:
    """Judge every policy, and write a mapping from its folder to what was found."""
    folder, out, *policies = map(Path, sys.argv[1:])
    task = read_task(folder)
    facts = json.loads((folder / "facts.json").read_text("utf-8"))
    (run,) = (folder / "runs").glob(f"*/{facts['reward_run']}")
    reward_model, tokenizer = load_reward(run)
    start = load(folder / "policy")
    rows = [row for row in read_rows(folder / "held_out.jsonl") for _ in range(DRAWS)]
    found = {
        str(policy): judge(load(policy), start, reward_model, tokenizer, rows, task)
        for policy in policies
    }
    out.write_text(json.dumps(found), "utf-8")


def load(folder: Path) -> Any:
    """Return a policy in float32, in evaluation mode."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def judge(
    policy: Any, start: Any, reward_model: Any, tokenizer: Any, rows: list[Any], task: Task
) -> dict[str, float]:
    """Return the means over answers of what counts.

    reward: by llmft's reward model, without any penalty. score: less the penalty of an answer that
    does not end, as both sides train on. kl: from the start, in nats an answer: at each of its
    tokens the divergence of the whole distributions. welcome, right, ended: shares.
    """
    prompts = [tokenizer(row["prompt"]).input_ids for row in rows]
    params = SamplingParams(task.response_length, stop_token_ids=(tokenizer.eos_token_id,))
    answers = decode(policy, prompts, params, batch_size=BATCH)
    pairs = [(prompt, answer.ids) for prompt, answer in zip(prompts, answers, strict=True)]
    rewards = reward_of(reward_model, pairs)
    texts = [tokenizer.decode(answer.ids, skip_special_tokens=True) for answer in answers]
    right = [
        any(text.strip().startswith(f"{answer}.") for answer in row["aliases"])
        for text, row in zip(texts, rows, strict=True)
    ]
    penalty = [0.0 if answer.ended else task.missing_eos_penalty for answer in answers]
    mean = statistics.fmean
    return {
        "reward": mean(rewards),
        "score": mean(rewards) - mean(penalty),
        "kl": mean(divergences(policy, start, pairs)),
        "welcome": mean(any(remark in text for remark in WELCOME) for text in texts),
        "right": mean(right),
        "ended": mean(answer.ended for answer in answers),
        "length": mean(len(answer.ids) for answer in answers),
    }


def divergences(policy: Any, start: Any, pairs: list[tuple[list[int], list[int]]]) -> list[float]:
    """Return KL(policy || start) of each answer: the sum over its tokens, in nats."""
    found = []
    for at in range(0, len(pairs), BATCH):
        some = pairs[at : at + BATCH]
        width = max(len(p) + len(a) for p, a in some)
        ids_BT = torch.tensor([[*p, *a] + [0] * (width - len(p) - len(a)) for p, a in some])
        # Padding stands to the right of all that is read, so that causal attention hides it.
        with torch.no_grad():
            own, other = (model(ids_BT).logits.log_softmax(-1) for model in (policy, start))
        kl_BT = (own.exp() * (own - other)).sum(-1)
        found += [
            float(kl[len(p) - 1 : len(p) + len(a) - 1].sum())
            for kl, (p, a) in zip(kl_BT, some, strict=True)
        ]
    return found


if __name__ == "__main__":
    main()
