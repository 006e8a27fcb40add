"""The same first steps by TRL's trainer: its tokenising, its collator, its loss, its Trainer.

`python -m llmft.verifying.trl_steps JOB` reads what `first_steps` wrote down, and writes its own
beside it. From llmft it takes the recipe's values and the adapter, which it puts on a model that
transformers loads.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from llmft.recipes.job import BoundStage, Job
from llmft.runs.upstream import load_options
from llmft.verifying import rollouts
from llmft.verifying.first_steps import STEPS, WEIGHTS, without_dropout
from llmft.verifying.measuring import Meter

TRL_STEPS = "trl-steps.json"
_WRAPPERS = ("base_model.model.", ".default", ".modules_to_save", ".original_module")


def no_counterpart(job: Job, bound: BoundStage) -> str:
    """Return why TRL's trainers have nothing that a stage could be held against; '' if they do."""
    alignment, spec = bound.spec.alignment, bound.spec
    method = alignment.method if alignment is not None else ""
    if method not in TRAINERS:
        return f"it is compared for {', '.join(TRAINERS)}, and the stage is '{method or 'a task'}'"
    if why := rollouts.no_counterpart(alignment) if method == "grpo" else "":
        return why
    if bound.upstream:
        return "the stage starts from another stage, or reads one"
    adapter = bound.model_adapter
    if adapter is not None and adapter.virtual_tokens():
        return "TRL's collators and losses know no virtual tokens"
    if adapter is not None and not adapter.trains_base and not adapter.trains_in_float32():
        return "its trainers keep the adapter of such a base in float32"
    if load_options(job.recipe, adapter):
        return "the base is quantised, and TRL trains such an adapter in bfloat16"
    if spec.data is not None and spec.data.streaming:
        return "its rows are streamed"
    if spec.train.neftune_noise_alpha:
        return "neftune_noise_alpha draws noise, and no two trainers the same"
    if spec.train.on_long_row == "split":
        return "on_long_row is split, and TRL cuts off what is longer where it packs no rows"
    if bound.schedule.follows_scores:
        return "its schedule follows the scores of held-out rows"
    if not isinstance(spec.train.optim, str):
        return f"TRL's arguments name no optimiser of a block ('{bound.optimizer.config.method}')"
    if not isinstance(spec.train.lr_scheduler_type, str):
        return f"TRL's arguments name no schedule of a block ('{bound.schedule.config.method}')"
    return ""


def arguments(job: Job, bound: BoundStage, told: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return TRL's arguments for a stage's settings, by TRL's names."""
    import torch

    train, plan = bound.spec.train, told["plan"]
    return {
        "output_dir": str(folder / "trl"), "max_steps": plan["steps"],
        "per_device_train_batch_size": plan["batch"],
        "gradient_accumulation_steps": plan["accumulation"],
        "learning_rate": train.learning_rate, "lr_scheduler_type": train.lr_scheduler_type,
        "lr_scheduler_kwargs": train.lr_scheduler_kwargs.given(), "warmup_steps": plan["warmup"],
        "optim": train.optim, "weight_decay": train.weight_decay, "adam_beta1": train.adam_beta1,
        "adam_beta2": train.adam_beta2, "adam_epsilon": train.adam_epsilon,
        "max_grad_norm": train.max_grad_norm, "bf16": train.under_autocast,
        "tf32": train.tf32,
        "gradient_checkpointing": train.gradient_checkpointing, "max_length": plan["max_length"],
        "seed": job.recipe.seed, "logging_steps": 1, "save_strategy": "no", "report_to": [],
        "disable_tqdm": True, "use_cpu": not torch.cuda.is_available(),
        "logging_nan_inf_filter": False,
    }  # fmt: skip


def _sft(bound: BoundStage, record: Mapping[str, Any]) -> tuple[str, str, dict[str, Any]]:
    more: dict[str, Any] = {"shuffle_dataset": False, "packing": False}
    learn = getattr(bound.spec.data, "learn", "all")
    if "messages" in record:
        more["assistant_only_loss"] = learn != "every_token"
    more |= {n: getattr(bound.spec.alignment, n) for n in ("loss_type", "label_smoothing_factor")}
    return "SFTTrainer", "SFTConfig", more


def _dpo(bound: BoundStage, record: Mapping[str, Any]) -> tuple[str, str, dict[str, Any]]:
    names = ("beta", "loss_type", "loss_weights", "label_smoothing", "f_divergence_type",
             "f_alpha_divergence_coef", "discopop_tau")  # fmt: skip
    return "DPOTrainer", "DPOConfig", {n: getattr(bound.spec.alignment, n) for n in names}


def _reward(bound: BoundStage, record: Mapping[str, Any]) -> tuple[str, str, dict[str, Any]]:
    center = getattr(bound.spec.alignment, "center_rewards_coefficient", 0.0)
    return "RewardTrainer", "RewardConfig", {"center_rewards_coefficient": center or None}


def _kto(bound: BoundStage, record: Mapping[str, Any]) -> tuple[str, str, dict[str, Any]]:
    names = ("beta", "loss_type", "desirable_weight", "undesirable_weight", "disable_dropout")
    more = {name: getattr(bound.spec.alignment, name) for name in names}
    return "KTOTrainer", "KTOConfig", more | {"train_sampling_strategy": "sequential"}


def _grpo(bound: BoundStage, record: Mapping[str, Any]) -> tuple[str, str, dict[str, Any]]:
    return "GRPOTrainer", "GRPOConfig", {}


TRAINERS = {"sft": _sft, "dpo": _dpo, "reward": _reward, "kto": _kto, "grpo": _grpo}


def run(job: Job, bound: BoundStage, folder: Path) -> dict[str, Any]:
    """Take the steps, and return rows, losses and what they took."""
    import torch
    import trl
    from datasets import Dataset
    from transformers import TrainerCallback

    from llmft.modeling.base_model import BaseModel

    told: dict[str, Any] = json.loads((folder / STEPS).read_text("utf-8"))
    rows = [row for step in told["rows"] for row in step]
    method = bound.spec.alignment.method  # type: ignore[union-attr]
    trainer_name, config_name, more = TRAINERS[method](bound, rows[0]["record"])
    base = BaseModel(job.recipe.model)
    tokenizer = base.tokenizer
    if tokenizer.pad_token in (None, tokenizer.eos_token):
        tokenizer.pad_token = (
            _padding(tokenizer, rows) if method == "reward" else tokenizer.eos_token
        )
    model = _model(job, base, is_reward=method == "reward", pad=tokenizer.pad_token_id)
    model = _attached(bound, model)
    start = _weights(model, folder / WEIGHTS)

    steps = len(told["rows"])

    class Until(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = state.global_step >= steps

    given: dict[str, Any]
    common, replay = arguments(job, bound, told, folder), None
    if method == "grpo":
        names = job.recipe.model.chat_template_kwargs
        replay, common, given = rollouts.trainer(bound, told, common, names)
    else:
        given = {"train_dataset": Dataset.from_list([row["record"] for row in rows])}
    settings = getattr(trl, config_name)(**common, **more)
    trainer = getattr(trl, trainer_name)(
        model=model, args=settings, processing_class=tokenizer, callbacks=[Until()], **given
    )
    if rows[0]["other"]:
        trainer.train_dataset = _with_others(trainer.train_dataset, rows)
    if replay is None:
        trainer._get_train_sampler = lambda data=None: torch.utils.data.SequentialSampler(
            trainer.train_dataset if data is None else data
        )
    without_dropout(trainer.model)
    encoded = [] if replay is not None else [_encoded(row) for row in trainer.train_dataset]
    meter = Meter()
    meter.start()
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    losses, norms = ([float(entry[name]) for entry in logged] for name in ("loss", "grad_norm"))
    encoded = replay.encoded if replay is not None else encoded
    return {
        "version": trl.__version__, "trainer": trainer_name, "losses": losses, "norms": norms,
        "start": start, "rows": [{"ids": ids, "labels": labels} for ids, labels in encoded],
        **meter.read(),
    }  # fmt: skip


def _with_others(dataset: Any, rows: Sequence[Mapping[str, Any]]) -> Any:
    """Return KTO's rows with the mismatched answers that llmft took: TRL pairs those of a batch."""
    column = "KL_completion_ids"
    others = [
        list(row["other"])[len(own["prompt_ids"]) :] for row, own in zip(rows, dataset, strict=True)
    ]
    return dataset.remove_columns(column).add_column(column, others)


def _padding(tokenizer: Any, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a token to pad with that no row has.

    TRL reads a reward at the last token that is no padding: with the end-of-text as padding, that
    is the one before a row's end.
    """
    used = {token for row in rows for ids in row["ids"] for token in ids}
    unused = (text for text, token in tokenizer.get_vocab().items() if token not in used)
    return str(next(unused))


def _model(job: Job, base: Any, *, is_reward: bool, pad: int) -> Any:
    import torch
    import transformers

    from llmft.modeling.new_tokens import give_rows

    kind = "AutoModelForSequenceClassification" if is_reward else "AutoModelForCausalLM"
    more: dict[str, Any] = {"num_labels": 1} if is_reward else {}
    model = getattr(transformers, kind).from_pretrained(
        base.path,
        revision=base.revision,
        dtype=getattr(torch, base.source.dtype),
        attn_implementation="eager" if job.recipe.model.attn_implementation == "eager" else "sdpa",
        **more,
    )
    give_rows(model, base.new_tokens)
    if is_reward:
        model.config.pad_token_id = pad
        model.score.float()
        model.prepare_inputs_for_generation = None  # PEFT asks every model for it
    return model


def _attached(bound: BoundStage, model: Any) -> Any:
    """Return a model with the stage's adapter, which has no part in the head of a reward model."""
    head = model._modules.pop("score", None)
    made = bound.model_adapter.attach(model) if bound.model_adapter is not None else model
    if head is not None:
        model.score = head
    return made


def _weights(model: Any, path: Path) -> str:
    """Give a model the weights that llmft started from; return which could not be given."""
    import torch
    from safetensors.torch import load_file

    given = {_plain(name): tensor for name, tensor in load_file(path).items()}
    taken = set()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            plain = _plain(name)
            if plain in given and given[plain].shape == parameter.shape:
                parameter.data = given[plain].to(parameter.device)
                parameter.requires_grad_(True)
                taken.add(plain)
    return ", ".join(sorted(set(given) - taken)[:5])


def _plain(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _encoded(row: Mapping[str, Any]) -> tuple[list[list[int]], list[list[int]]]:
    """Return the ids and labels of a row as TRL prepared it, of each of its answers."""
    if "chosen_ids" in row:
        if "prompt_ids" not in row:  # a reward model reads whole rows, and has no labels
            return [list(row[name]) for name in ("chosen_ids", "rejected_ids")], []
        prompt = list(row["prompt_ids"])
        ids = [prompt + list(row[name]) for name in ("chosen_ids", "rejected_ids")]
        return ids, [[-100] * len(prompt) + one[len(prompt) :] for one in ids]
    if "completion_ids" in row and "input_ids" not in row:
        prompt, answer = list(row["prompt_ids"]), list(row["completion_ids"])
        return [prompt + answer], [[-100] * len(prompt) + answer]
    tokens: list[int] = list(row["input_ids"])
    labels = row.get("labels")
    mask = row.get("assistant_masks") or row.get("completion_mask")
    if labels is None:
        kept = mask or [1] * len(tokens)
        labels = [i if m else -100 for i, m in zip(tokens, kept, strict=True)]
    return [tokens], [list(labels)]


def main(path: str) -> int:
    """Run the job; what TRL says where it cannot is written down as it is."""
    order: dict[str, Any] = json.loads(Path(path).read_text("utf-8"))
    folder = Path(order["folder"])
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
            from llmft.recipes.load import load_recipe
            from llmft.registry.registry import Registry

            job = load_recipe(order["recipe"], Registry.discover(), order["overrides"])
            bound = next(stage for stage in job.stages if stage.name == order["stage"])
            found = run(job, bound, folder)
    except Exception as error:
        found = {"refused": f"{type(error).__name__}: {error}"[:2000]}
    (folder / TRL_STEPS).write_text(json.dumps(found), "utf-8")
    return 0


def flat(told: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return the rows of all steps, in order."""
    return [row for step in told["rows"] for row in step]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
