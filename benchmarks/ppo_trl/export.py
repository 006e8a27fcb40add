"""From a run of llmft to plain transformers folders, which any other program can load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from task import read_rows, write_rows

from llmft.api import Encoded
from llmft.inference.answering import load_run
from llmft.modeling.base_model import BaseModel, locate_model
from llmft.registry.registry import Registry
from llmft.runs import artifacts
from llmft.runs.upstream import stage_model
from llmft.toolkit import rewards

CHECKED = 16
"""Answers whose rewards are written down for the other side to check."""


def merge_stage(run: Path, stage: str, base: str, folder: Path) -> None:
    """Write the model that a stage of a run has trained, its LoRA merged into the base.

    base: as a recipe names it. What llmft saves is PEFT's format, so PEFT alone reads it.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = locate_model(base)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    adapter = artifacts.stage_folder(run, stage) / artifacts.ADAPTER
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload(safe_merge=True)
    merged.save_pretrained(folder)
    AutoTokenizer.from_pretrained(path).save_pretrained(folder)


def load_reward(run: Path) -> tuple[Any, Any]:
    """Return the reward model of a run's stage 'reward', and its tokenizer."""
    job = load_run(run, Registry.discover())
    base = BaseModel(job.recipe.model)
    folder = artifacts.stage_folder(run, "reward")
    model = stage_model(job.stage("reward"), base.load({}, varlen=True), folder, whole=True)
    return model, base.tokenizer


def reward_of(model: Any, pairs: list[tuple[list[int], list[int]]], batch: int = 32) -> list[float]:
    """Return the reward of each (prompt, answer), as token ids."""
    rows = [Encoded((*p, *a), (*[-100] * len(p), *a)) for p, a in pairs]
    with torch.no_grad():
        found = [rewards(model, rows[i : i + batch]) for i in range(0, len(rows), batch)]
    return [float(value) for value in torch.cat(found)]


def export_reward(run: Path, rows: Path, folder: Path, scored: Path) -> None:
    """Write a run's reward model as a sequence classifier, and the rewards of some answers."""
    from transformers import LlamaForSequenceClassification

    model, tokenizer = load_reward(run)
    examples = []
    for row in read_rows(rows)[: CHECKED // 2]:
        for said in ("welcome", "unwelcome"):
            answer = tokenizer(f" {row['answer']}. {row[said]}").input_ids
            prompt = tokenizer(row["prompt"]).input_ids
            examples.append((prompt, [*answer, tokenizer.eos_token_id]))
    lines = zip(examples, reward_of(model, examples), strict=True)
    write_rows(scored, [{"prompt_ids": p, "answer_ids": a, "reward": r} for (p, a), r in lines])
    head = model.score.weight.detach().clone()
    merged = model.merge_and_unload(safe_merge=True)
    config = merged.config
    config.num_labels, config.pad_token_id = 1, tokenizer.pad_token_id
    classifier = LlamaForSequenceClassification(config)
    classifier.model.load_state_dict(merged.model.state_dict())
    classifier.score.weight.data.copy_(head)
    classifier.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
