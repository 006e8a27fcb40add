"""One epoch of DPO or reward training with TRL and with llmft: same start, rows and order."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from llmft.api import EncodedPair

RANK, ALPHA, RATE, BETA = 8, 16, 1e-5, 0.1
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Outcome = tuple[float, list[float]]


def with_llmft(method: str, path: Path, pairs: list[EncodedPair], batch: int) -> Outcome:
    """Return the CPU seconds, the reference's included, and the losses of our loop."""
    from llmft_alignments.dpo import Dpo, DpoItem, DpoObjective
    from llmft_alignments.reference import reference_logps
    from llmft_alignments.reward import Reward, RewardObjective

    from llmft import loop
    from llmft.settings import TrainSettings
    from llmft.training import heads

    model = adapted(causal_model(path, varlen=True), "CAUSAL_LM")
    if method == "reward":
        heads.add_score_head(model)
        model.score.weight.data = head_weight(model)
    settings = TrainSettings(
        per_device_train_batch_size=batch, per_device_eval_batch_size=32, learning_rate=RATE,
        lr_scheduler_type="constant", num_train_epochs=1.0,
    )  # fmt: skip
    losses: list[float] = []

    def note(step: int, steps: int, metrics: Mapping[str, float], log: bool) -> None:
        losses.append(metrics["loss"])

    settings = settings.model_copy(update={"logging_steps": 1})
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        items: list[Any] = list(pairs)
        objective: Any = RewardObjective(Reward.Config(method="reward"), share=True)
        if method == "dpo":
            reference = reference_logps(Stage(model, Path(folder), settings), pairs).tolist()
            items = [
                DpoItem(p.chosen, p.rejected, p.shared, p.margin, p.origin, (c, r))
                for p, (c, r) in zip(pairs, reference, strict=True)
            ]
            objective = DpoObjective(Dpo.Config(method="dpo", beta=BETA), share=True)
        order = in_order(len(items), settings)
        loop.train(model, [items[i] for i in order], objective, settings, seed=0, on_step=note)
        return time.process_time() - started, losses


class Stage:
    """What the reference needs to know of a stage."""

    shares_prompts = True

    def __init__(self, model: Any, folder: Path, train: Any) -> None:
        self.model, self.folder, self.train = model, folder, train

    def reference(self) -> AbstractContextManager[Any]:
        """Return the base with the adapter off."""
        context: AbstractContextManager[Any] = self.model.disable_adapter()
        return context

    def progress(self, phase: str, done: int, total: int) -> None:
        """Say nothing."""


def in_order(count: int, settings: Any) -> list[int]:
    """Return where each row must stand, so that our shuffled plan takes the rows in order."""
    from llmft.training.plan import Plan

    taken = [i for batch in _batches(Plan.of(count, settings, 0)) for i in batch]
    places = [0] * count
    for position, place in enumerate(taken):
        places[place] = position
    return places


def _batches(plan: Any) -> list[list[int]]:
    return [batch for step in range(plan.steps) for batch in plan.step_batches(step)]


def with_trl(method: str, path: Path, pairs: list[EncodedPair], batch: int) -> Outcome:
    """Return the CPU seconds of TRL's trainer, what it does before its first step left out."""
    from transformers import AutoTokenizer, PrinterCallback

    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.pad_token = tokenizer.unk_token  # a reward read at the last token that is no pad
    with tempfile.TemporaryDirectory() as folder:
        common = {
            "output_dir": folder, "per_device_train_batch_size": batch, "learning_rate": RATE,
            "lr_scheduler_type": "constant", "warmup_steps": 0, "num_train_epochs": 1,
            "logging_steps": 1, "report_to": [], "use_cpu": True, "bf16": False,
            "optim": "adamw_torch", "weight_decay": 0.0, "max_grad_norm": 1.0,
            "gradient_checkpointing": False, "max_length": 256, "save_strategy": "no",
            "disable_tqdm": True, "train_sampling_strategy": "sequential",
        }  # fmt: skip
        trainer = (_dpo if method == "dpo" else _reward)(path, pairs, tokenizer, common)
        trainer.remove_callback(PrinterCallback)
        started = time.process_time()
        trainer.train()
        seconds = time.process_time() - started
    return seconds, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def _dpo(path: Path, pairs: list[EncodedPair], tokenizer: Any, common: dict[str, Any]) -> Any:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class Encoded(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *rest: Any, **more: Any) -> Any:
            return dataset  # the very token ids that we train on

    rows = [
        {
            "prompt_ids": list(p.chosen.input_ids[:n]),
            "chosen_ids": list(p.chosen.input_ids[n:]),
            "rejected_ids": list(p.rejected.input_ids[n:]),
        }
        for p in pairs
        for n in [p.chosen.labels.count(-100)]
    ]
    trainer = Encoded(
        model=causal_model(path, varlen=False), args=DPOConfig(beta=BETA, **common),
        train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
        peft_config=lora_config("CAUSAL_LM"),
    )  # fmt: skip
    start_alike(trainer.model)
    return trainer


def _reward(path: Path, pairs: list[EncodedPair], tokenizer: Any, common: dict[str, Any]) -> Any:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    model = AutoModelForSequenceClassification.from_pretrained(
        path, num_labels=1, dtype=torch.float32
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    rows = [
        {"chosen_ids": list(p.chosen.input_ids), "rejected_ids": list(p.rejected.input_ids)}
        for p in pairs
    ]
    trainer = RewardTrainer(
        model=model, args=RewardConfig(**common), train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer, peft_config=lora_config("SEQ_CLS"),
    )  # fmt: skip
    start_alike(trainer.model)
    for name, parameter in trainer.model.named_parameters():
        if name.rpartition("score.")[1]:
            parameter.data.copy_(head_weight(trainer.model))
    return trainer


def causal_model(path: Path, *, varlen: bool) -> Any:
    """Return the base in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    from llmft.training import attention

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    if varlen:
        attention.register()
        model.set_attn_implementation(attention.NAME)
    return model


def lora_config(task: str) -> Any:
    """Return the adapter's configuration."""
    from peft import LoraConfig

    return LoraConfig(task_type=task, r=RANK, lora_alpha=ALPHA, target_modules=TARGETS)


def adapted(model: Any, task: str) -> Any:
    """Return the base with the adapter attached, at the start that both sides share."""
    from peft import get_peft_model

    model = get_peft_model(model, lora_config(task))
    start_alike(model)
    return model


def start_alike(model: Any) -> None:
    """Draw the adapter's A from a seed, by name; B is zero."""
    import torch

    named = {n: p for n, p in model.named_parameters() if "lora_A.default" in n}
    generator = torch.Generator().manual_seed(0)
    for name in sorted(named, key=lambda n: n[n.index("layers.") :]):
        noise = torch.randn(named[name].shape, generator=generator)
        named[name].data.copy_(0.05 * noise)


def head_weight(model: Any) -> Any:
    """Return the reward head that both sides start from, shape (1, D)."""
    import torch

    width = model.config.hidden_size
    return torch.randn(1, width, generator=torch.Generator().manual_seed(1)) / width**0.5
