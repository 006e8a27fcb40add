"""Every field of the settings that all recipes have, set away from its default, does something.

A field without a case fails here, until somebody has said by what its effect is seen.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llmft.api import ChatRow, CompletionRow, Encoded, Message, PreferenceRow
from llmft.api.errors import DataError, LlmftError
from llmft.api.evaluate_settings import EvaluateSettings
from llmft.api.model_settings import ModelSource, Quantization, RopeScaling
from llmft.api.rows import IGNORED
from llmft.api.train_settings import LrSchedulerKwargs, TrainSettings
from llmft.data.encoding import Encoder
from llmft.data.pair_encoding import encode_pairs
from llmft.data.unpaired_encoding import encode_unpaired
from llmft.engine.stage_log import StageLog
from llmft.evaluation import evaluation, generation
from llmft.modeling import base_model, recompute
from llmft.modeling.base_model import BaseModel
from llmft.modeling.levers import ALL
from llmft.modeling.rope_scaling import stretch
from llmft.modeling.tiny_models import tiny_gpt2, tiny_llama, tiny_model_folder, tiny_tokenizer
from llmft.system import machine
from llmft.training import loop
from llmft.training.optimizer import make_optimizer, make_schedule
from tests.every_setting import Case, Lab, check, without_case

# --- the loop, on ten items and three numbers that are trained --------------------------------


class Three:
    """An objective whose gradient is (1, 2, 2), of norm 3; it keeps what it is given."""

    def __init__(self, poisoned: bool = False) -> None:
        self.batches: list[int] = []
        self.autocast: set[bool] = set()
        self.poisoned = poisoned

    def weight(self, batch) -> float:
        return float(len(batch))

    def loss(self, model, batch):
        self.batches.append(len(batch))
        self.autocast.add(torch.is_autocast_enabled("cpu"))
        slopes = torch.tensor([1.0, 2.0, 2.0])
        if self.poisoned and len(self.batches) == 1:
            slopes = slopes * math.nan
        return (model.weight * slopes).sum() * len(batch), {}


def trained(settings: TrainSettings, poisoned: bool = False) -> SimpleNamespace:
    """Return what a training of ten items did."""
    model = torch.nn.Linear(3, 1, bias=False)
    objective, start = Three(poisoned), model.weight.detach().clone()
    steps: list[dict[str, float]] = []
    logs: list[bool] = []

    def on_step(step, of, metrics, log):
        steps.append(dict(metrics))
        logs.append(log)

    report = loop.train(model, range(10), objective, settings, seed=0, on_step=on_step)
    moved = model.weight.detach() - start
    rates = [metrics["learning_rate"] for metrics in steps]
    return SimpleNamespace(
        batches=objective.batches, autocast=objective.autocast, logs=logs, rates=rates,
        steps=len(steps), moved=float(moved.norm()), skipped=report.skipped,
    )  # fmt: skip


def looped(name: str, **more: Any) -> Callable[[Any, Lab], Any]:
    return lambda settings, lab: getattr(trained(settings, **more), name)


def optimizer(name: str) -> Callable[[Any, Lab], Any]:
    """Return what looks at a setting of the optimiser; test_optimizer.py holds what it does."""

    def see(settings, lab):
        made = make_optimizer([{"params": [torch.nn.Parameter(torch.zeros(1))]}], settings)
        return type(made).__name__ if name == "type" else made.param_groups[0][name]

    return see


def dealt(settings: TrainSettings, lab: Lab) -> list[int]:
    """Return how many of four rows of three tokens each pass of a step has."""
    sizes = []

    class Watching(Three):
        def loss(self, model, batch):
            sizes.append(len(batch))
            return model(input_ids=torch.tensor([batch[0].input_ids])).logits.sum(), {}

    rows = [Encoded((1, 2, 3), (1, 2, 3))] * 4
    asked = TrainSettings(**settings.model_dump() | {"max_steps": 1})
    loop.train(tiny_llama(), rows, Watching(), asked, seed=0)
    return sizes


def rows_taken(settings: TrainSettings, lab: Lab) -> list[list[int]]:
    """Return the rows of each pass, by their lengths, of twelve rows of 1 to 12 tokens."""
    taken = []

    class Watching(Three):
        def loss(self, model, batch):
            taken.append([len(row.input_ids) for row in batch])
            return model.weight.sum(), {}

    rows = [Encoded((1,) * n, (1,) * n) for n in range(1, 13)]
    loop.train(torch.nn.Linear(3, 1), rows, Watching(), settings, seed=0)
    return taken


def moved_embeddings(settings: TrainSettings, lab: Lab) -> tuple[bool, bool]:
    """Whether embeddings are moved in training, and whether by less than 4 / sqrt(L D) each."""
    model, rows = tiny_llama(), [Encoded((1, 2, 3, 4, 5), (1, 2, 3, 4, 5))]
    table, seen = model.get_input_embeddings(), []

    class Watching(Three):
        def loss(self, model, batch):
            hook = table.register_forward_hook(
                lambda _, ids, out: seen.append((ids[0], out.detach()))
            )
            loss = model(input_ids=torch.tensor([rows[0].input_ids])).logits.sum()
            hook.remove()
            return loss, {}

    loop.train(model, rows, Watching(), TrainSettings(**settings.model_dump() | {"max_steps": 1}),
               seed=0)  # fmt: skip
    ((ids, out),) = seen
    moved = out - torch.nn.functional.embedding(ids, tiny_llama().get_input_embeddings().weight)
    most, bound = moved.detach().abs().max().item(), 4 / (5 * 32) ** 0.5
    return 0.8 * bound < most, 0 < most <= bound


def checkpointed(model) -> list[bool]:
    """Which layers are computed again."""
    return [layer.gradient_checkpointing for layer in model.get_base_model().model.layers]


def on_nan(settings: TrainSettings, lab: Lab) -> Any:
    try:
        return trained(settings, poisoned=True).skipped
    except LlmftError as error:
        return error.faults[0].code


# --- a stage, on rows in files -------------------------------------------------------------------


class Reached(BaseException):
    """A run has come to where a case looks; nothing catches it."""


def rows_files(lab: Lab) -> dict[str, str]:
    """Write 12, 4 and 7 rows; every third one of the first is long."""
    found = {}
    for split, count in {"train": 12, "validation": 4, "test": 7}.items():
        path = lab.folder / f"{split}.jsonl"
        long = 40 if split == "train" else 1
        rows = [
            {"prompt": f"{split} {n}", "completion": "x" * (long if n % 3 == 0 else 1)}
            for n in range(count)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found[split] = str(path)
    return found


def stage(lab: Lab, train: Any = None, evaluate: Any = None) -> dict[str, Any]:
    made = {
        "name": "sft",
        "adapter": {"method": "lora", "r": 2},
        "alignment": {"method": "sft"},
        "data": {"method": "jsonl", "data_files": rows_files(lab)},
        "train": train.model_dump(mode="json") if train else {"max_steps": 1},
    }
    return made | ({"evaluate": evaluate.model_dump(mode="json")} if evaluate else {})


def to_train(look: Callable[[Any, Any], Any], **data: Any) -> Callable[[Any, Lab], Any]:
    """Return what runs a stage as far as its training, and looks at the model and the items.

    data: further settings of its data block.
    """

    def see(settings: TrainSettings, lab: Lab) -> Any:
        found: list[Any] = []

        def train(model, items, *_, **__):
            found.append(look(model, items))
            raise Reached

        with lab.patch.context() as patch:
            patch.setattr(loop, "train", train)
            try:
                made = stage(lab, settings)
                lab.run({**made, "data": {**made["data"], **data}})
            except Reached:
                return found[0]
            except LlmftError as error:
                return error.faults[0].code
        raise AssertionError("nothing was trained")

    return see


def lengths(model: Any, items: Any) -> list[int]:
    return sorted(len(item.input_ids) for item in items)


def checkpoints(settings: TrainSettings, lab: Lab) -> list[str]:
    """Return the checkpoints that a run of 12 rows leaves behind."""
    folder = lab.run(stage(lab, settings)).folder / "stages" / "sft" / "checkpoints"
    return sorted(path.name for path in folder.glob("step-*")) if folder.exists() else []


def eval_batches(settings: TrainSettings, lab: Lab) -> list[int]:
    """Return how many rows each forward pass of the first evaluation has, of 4 in all."""
    sizes: list[int] = []
    real = evaluation.label_nll

    def counted(model, rows, *more):
        sizes.append(len(rows))
        return real(model, rows, *more)

    def train(*_, **__):
        raise Reached

    with lab.patch.context() as patch:
        patch.setattr(evaluation, "label_nll", counted)
        patch.setattr(loop, "train", train)
        with pytest.raises(Reached):
            lab.run(stage(lab, settings, EvaluateSettings()))
    return sizes


def offloaded(settings: TrainSettings, lab: Lab) -> int:
    """Return how many layers' inputs a step puts elsewhere, where the device is taken for a GPU."""
    put: list[Any] = []

    def to_host(tensor: Any) -> Callable[[], Any]:
        put.append(tensor)
        return tensor.clone

    with lab.patch.context() as patch:
        patch.setattr(recompute, "to_host", to_host)
        patch.setattr(machine, "on_gpu", lambda: True)
        lab.run(stage(lab, settings))
    return len(put)


def divided(settings: TrainSettings, lab: Lab) -> list[str]:
    """Return what is said of dividing the base, by a run of one process."""
    notes: list[str] = []
    with lab.patch.context() as patch:
        patch.setattr(StageLog, "note", lambda self, text: notes.append(text))
        lab.run(stage(lab, settings))
    return [note for note in notes if "shard_base" in note]


def packed_lengths(model: Any, items: Any) -> list[int]:
    return [sum(lengths(model, item)) for item in items]


def prompts_of_pairs(settings: TrainSettings, lab: Lab) -> list[str]:
    """Return the prompts of a pair's two rows, and of an answer with a label, as text."""
    pair = PreferenceRow("How to?", " so", " or")
    encoder = Encoder(tiny_tokenizer(pad=True), settings.max_length)
    ((both,), _), ((one, _), _) = (
        encode(encoder, [pair], settings) for encode in (encode_pairs, encode_unpaired)
    )
    rows = (both.chosen, both.rejected, one)
    return [bytes(row.input_ids[: row.labels.count(IGNORED)]).decode() for row in rows]


AS_TEXT = {"columns": {"text": "{prompt}{completion}"}}
BATCH = {"per_device_train_batch_size": 4}
SAVING = {**BATCH, "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2}
SHORT = {"max_length": 20, "max_dropped": 0.5}
TRAIN = {
    "num_train_epochs": Case(2.5, looped("steps"), 5, was=2),
    "max_steps": Case(3, looped("steps"), 3, was=2),
    "per_device_train_batch_size": Case(4, looped("batches"), [4, 4, 2], was=[8, 2]),
    "gradient_accumulation_steps": Case(2, looped("steps"), 2, also=BATCH, was=3),
    "drop_last": Case(True, looped("batches"), [8], was=[8, 2]),
    "train_sampling_strategy": Case(
        "sequential", rows_taken, [[*range(1, 9)], [*range(9, 13)]],
    ),
    "train_batch_size": Case(8, looped("steps"), 2, also=BATCH, was=3),
    "per_device_train_tokens": Case(7, dealt, [2, 2], was=[4]),
    "per_device_eval_batch_size": Case(3, eval_batches, [3, 1], was=[4]),
    "learning_rate": Case(0.5, looped("rates"), [0.5, 0.25]),
    "lr_scheduler_type": Case("constant", looped("rates"), [2e-4, 2e-4], was=[2e-4, 1e-4]),
    "warmup_steps": Case(2, looped("rates"), [0.0, 1e-4, 2e-4], also=BATCH),
    "warmup_max_steps": Case(
        1, looped("rates"), [0.0, 2e-4, 1e-4], also={**BATCH, "warmup_ratio": 0.7},
        was=[0.0, 2e-4 / 3, 4e-4 / 3],
    ),
    "warmup_rounding": Case(
        "axolotl", looped("rates"), [0.0, 1e-4, 2e-4], also={**BATCH, "warmup_ratio": 0.7},
        was=[0.0, 2e-4 / 3, 4e-4 / 3],
    ),
    "warmup_ratio": Case(0.5, looped("rates"), [0.0, 1e-4, 2e-4], also=BATCH),
    "optim": Case("sgd", optimizer("type"), "SGD", was="AdamW"),
    "neftune_noise_alpha": Case(4.0, moved_embeddings, (True, True), was=(False, False)),
    "weight_decay": Case(0.25, optimizer("weight_decay"), 0.25, was=0.0),
    "adam_beta1": Case(0.6, lambda s, lab: optimizer("betas")(s, lab)[0], 0.6, was=0.9),
    "adam_beta2": Case(0.7, lambda s, lab: optimizer("betas")(s, lab)[1], 0.7, was=0.999),
    "adam_epsilon": Case(1e-3, optimizer("eps"), 1e-3, was=1e-8),
    "max_grad_norm": Case(
        0.125, looped("moved"), 0.125, was=1.0,
        also={"optim": "sgd", "learning_rate": 1.0, "max_steps": 1},
    ),
    "on_nan": Case("skip", on_nan, 1, was="E301"),
    "bf16": Case(True, looped("autocast"), {True}, was={False}),
    "tf32": Case(
        False, to_train(lambda model, items: torch.backends.cudnn.conv.fp32_precision), "ieee",
        was="tf32",
    ),
    "gradient_checkpointing": Case(
        True, to_train(lambda model, items: model.is_gradient_checkpointing), True, was=False
    ),
    "activation_offloading": Case(
        True, offloaded, 2, also={"gradient_checkpointing": True, "max_steps": 1}, was=0
    ),
    "shard_base": Case(
        True, divided, ["train.shard_base has nothing to divide: one process has the whole base"],
        also={"max_steps": 1}, was=[],
    ),  # what it does in two: test_sharded_base
    "full_determinism": Case(
        True, to_train(lambda model, items: torch.are_deterministic_algorithms_enabled()), True,
        was=False,
    ),
    "max_length": Case(16, to_train(lambda model, items: max(lengths(model, items))), 16),
    "max_prompt_length": Case(
        3, prompts_of_pairs, ["to?"] * 3, was=["How to?"] * 3, also={"max_length": 64},
    ),
    "packing": Case(
        True, to_train(lambda model, items: {isinstance(item, tuple) for item in items}), {True},
        also={"max_length": 64}, was={False},
    ),
    "packing_strategy": Case(
        "wrapped", to_train(packed_lengths, **AS_TEXT), [64, 64, 64, 64, 10],
        also={"max_length": 64, "packing": True},
    ),
    "cross_document_attention": Case(
        True, to_train(lambda model, items: {len(item) for item in items}, **AS_TEXT), {1},
        also={"max_length": 64, "packing": True, "packing_strategy": "wrapped"},
    ),
    "on_long_row": Case(
        "drop", to_train(lambda model, items: len(items)), 8, also=SHORT, was=12
    ),
    "max_dropped": Case(
        0.4, to_train(lambda model, items: len(items)), 8,
        also={"max_length": 20, "on_long_row": "drop"}, was="E104",
    ),
    "logging_steps": Case(
        2, looped("logs"), [False, True, True], also=BATCH, was=[False, False, True]
    ),
    "save_strategy": Case(
        "epoch", checkpoints, ["step-3", "step-6"], also={**BATCH, "num_train_epochs": 2}, was=[]
    ),
    "save_steps": Case(4, checkpoints, ["step-4", "step-6"], also=SAVING),
    "save_total_limit": Case(
        3, checkpoints, ["step-2", "step-4", "step-6"], also=SAVING, was=["step-4", "step-6"]
    ),
}  # fmt: skip

# --- the learning-rate schedule ------------------------------------------------------------------


def rate_at(step: int, name: str, **train: Any) -> Callable[[Any, Lab], float]:
    """Return what looks at the rate after so many of 4 steps, of a peak of 1."""

    def see(kwargs: LrSchedulerKwargs, lab: Lab) -> float:
        settings = TrainSettings(
            optim="sgd", learning_rate=1.0, lr_scheduler_type=name, lr_scheduler_kwargs=kwargs,
            **train,
        )  # fmt: skip
        optimizer = make_optimizer([{"params": [torch.nn.Parameter(torch.zeros(1))]}], settings)
        schedule = make_schedule(optimizer, settings, 4)
        for _ in range(step):
            optimizer.step()
            schedule.step()
        return float(schedule.get_last_lr()[0])

    return see


def rate_after(*scores: float, name: str = "reduce_lr_on_plateau") -> Callable[[Any, Lab], float]:
    """Return what looks at the rate of a schedule after these scores, of a peak of 1."""

    def see(kwargs: LrSchedulerKwargs, lab: Lab) -> float:
        settings = TrainSettings(
            optim="sgd", learning_rate=1.0, lr_scheduler_type=name, lr_scheduler_kwargs=kwargs
        )  # fmt: skip
        optimizer = make_optimizer([{"params": [torch.nn.Parameter(torch.zeros(1))]}], settings)
        schedule: Any = make_schedule(optimizer, settings, 4)
        for score in scores:
            schedule.scored(score)
        return float(schedule.get_last_lr()[0])

    return see


def greedy_after(*scores: float) -> Callable[[Any, Lab], float]:
    return rate_after(*scores, name="greedy")


WSD, AT_ONCE = "warmup_stable_decay", {"patience": 0}
HALVES = {**AT_ONCE, "factor": 0.5}
LR_KWARGS = {
    "num_cycles": Case(1.0, rate_at(2, "cosine"), 0.0, was=0.5),
    "min_lr": Case(0.25, rate_at(4, "cosine_with_min_lr"), 0.25, alone=True),
    "min_lr_rate": Case(0.25, rate_at(4, "cosine_with_min_lr"), 0.25, alone=True),
    "warmup_lr_rate": Case(
        0.25, rate_at(0, "cosine_warmup_with_min_lr", warmup_steps=2), 0.25,
        also={"min_lr_rate": 0.1},
    ),
    "lr_end": Case(0.25, rate_at(4, "polynomial"), 0.25, was=1e-7),
    "power": Case(2.0, rate_at(2, "polynomial"), 0.25, was=0.5),
    "timescale": Case(1, rate_at(3, "inverse_sqrt"), 0.5),
    "num_decay_steps": Case(2, rate_at(3, WSD), 0.5, alone=True),
    "warmup_type": Case(
        "cosine", rate_at(1, WSD, warmup_steps=3), 0.25, also={"num_decay_steps": 1}, was=1 / 3
    ),
    "decay_type": Case(
        "linear", rate_at(1, WSD), 0.75, also={"num_decay_steps": 4},
        was=(1 + math.cos(math.pi / 4)) / 2,
    ),
    "min_lr_ratio": Case(0.25, rate_at(3, WSD), 0.625, also={"num_decay_steps": 2}, was=0.5),
    "factor": Case(0.5, rate_after(1.0, 1.0), 0.5, also=AT_ONCE, was=0.1),
    "patience": Case(1, rate_after(1.0, 1.0, 1.0), 0.1, was=1.0),
    "threshold": Case(0.5, rate_after(1.0, 0.8), 0.1, also=AT_ONCE, was=1.0),
    "threshold_mode": Case(
        "abs", rate_after(4.0, 3.0), 1.0, also={**AT_ONCE, "threshold": 0.5}, was=0.1
    ),
    "cooldown": Case(2, rate_after(1.0, 1.0, 1.0), 0.1, also=AT_ONCE, was=0.01),
    "warmup": Case(1, greedy_after(4.0, 3.0, 2.0), 4.0, also={**HALVES, "max_lr": 8.0}, was=8.0),
    "max_lr": Case(1.5, greedy_after(2.0), 1.5, also=HALVES, was=1.0),
    "eps": Case(0.9, greedy_after(2.0, 2.0), 1.0, also=HALVES, was=0.5),
    "smooth": Case(True, greedy_after(4.0, 2.0, 2.5), 1.0, also=HALVES, was=0.5),
    "window_size": Case(
        1, greedy_after(4.0, 2.0, 2.5), 0.5, also={**HALVES, "smooth": True}, was=1.0
    ),
    "reset_start": Case(
        1, greedy_after(2.0, 2.0, 2.0), 1.0, also={**HALVES, "min_lr": 0.25}, was=0.25
    ),
}  # fmt: skip

# --- the model -----------------------------------------------------------------------------------


@cache
def _folders(home: Path) -> dict[str, str]:
    plain = tiny_model_folder(home / "llama")
    other = tiny_model_folder(home / "gpt2", tiny_gpt2(), tiny_tokenizer(pad=True))
    return {"llama": str(plain), "gpt2": str(other)}


def tiny(lab: Lab) -> str:
    return _folders(lab.folder)["llama"]


def options(name: str) -> Callable[[Any, Lab], Any]:
    """Return what looks with which options transformers is asked for the weights."""

    def see(source: ModelSource, lab: Lab) -> Any:
        from transformers import AutoModelForCausalLM

        found: dict[str, Any] = {}

        def from_pretrained(path, **asked):
            found.update(asked)
            raise Reached

        with lab.patch.context() as patch:
            patch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
            with pytest.raises(Reached):
                BaseModel(source).load({}, varlen=True)
        return found[name]

    return see


def stored(block: Quantization, lab: Lab) -> Any:
    """Return what a run asks of bitsandbytes, in BitsAndBytesConfig's words."""
    from transformers import AutoModelForCausalLM

    found: list[Any] = []

    def from_pretrained(path, **asked):
        found.append(asked["quantization_config"])
        raise Reached

    with lab.patch.context() as patch:
        patch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
        with pytest.raises(Reached):
            lab.run(stage(lab), model={"path": tiny(lab), "quantization": block.model_dump()})
    return found[0]


def of_stored(name: str) -> Callable[[Any, Lab], Any]:
    def see(block: Quantization, lab: Lab) -> Any:
        value = getattr(stored(block, lab), name, None)
        return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value

    return see


def loaded(look: Callable[[Any], Any]) -> Callable[[Any, Lab], Any]:
    return lambda source, lab: look(BaseModel(source).load({}, varlen=True))


def tokenizer(name: str) -> Callable[[Any, Lab], Any]:
    return lambda source, lab: getattr(BaseModel(source).tokenizer, name)


def trained_on(source: ModelSource, template: str, *messages: tuple[str, str]) -> Any:
    """Return what is trained on in a conversation under a template, or a refusal's code."""
    base = BaseModel(source.model_copy(update={"chat_template": template}))
    row = ChatRow(tuple(Message(role=role, content=text) for role, text in messages))
    try:
        encoded, _ = Encoder(base.tokenizer, None, base.chat_format).encode([row], TrainSettings())
    except DataError as error:
        return error.faults[0].code
    return [base.tokenizer.decode([i for i in row.labels if i != IGNORED]) for row in encoded]


def stops(model: Any, token: int) -> bool:
    declared = model.generation_config.eos_token_id
    return isinstance(declared, list) and token in declared


WRITES = (
    "{% for m in messages %}{{ '>' if m.role == 'assistant' }}{{ m.content }}!{{ end }}{% endfor %}"
    "{{ '>' if add_generation_prompt }}"
)
TALK = (("user", "ho"), ("assistant", "hi"))


def answered(source: ModelSource, lab: Lab) -> Any:
    loud = WRITES.replace("m.content", "(m.content | upper if loud else m.content)")
    return trained_on(source, loud, *TALK)[0]


def compiled(source: ModelSource, lab: Lab) -> Any:
    """Return which kinds of modules have a compiled forward pass."""
    with lab.patch.context() as patch:
        patch.setattr(base_model, "proven_levers", lambda *_: ALL)
        model = BaseModel(source).load({}, varlen=True)
    return {type(m).__name__ for m in model.modules() if m._compiled_call_impl is not None}


def dated(source: ModelSource, lab: Lab) -> Any:
    answer = "{{ strftime_now('%Y') if m.role == 'assistant' }}"
    text = trained_on(source, WRITES.replace("{{ end }}", answer), *TALK)[0]
    return text.removeprefix("hi!")


def losing(source: ModelSource, lab: Lab) -> Any:
    template = WRITES.replace("m.content", "(m.content if m.role != 'system')")
    return trained_on(source, template, ("system", "be brief"), *TALK)


def ending(source: ModelSource, lab: Lab) -> Any:
    found = trained_on(source, WRITES, *TALK)
    return found if isinstance(found, str) else found[0]


def new_token(source: ModelSource, lab: Lab) -> tuple[int, bool]:
    """Return how many tokens '<new>' is, and whether it is a special one."""
    made = BaseModel(source).tokenizer
    return len(made("<new>")["input_ids"]), "<new>" in made.all_special_tokens


def spaced(source: ModelSource, lab: Lab) -> list[str]:
    """Return the tokens of prompt 'a' and answer 'b' by a tokenizer that puts a space before."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE(vocab={"\u2581": 0, "a": 1, "b": 2, "</s>": 3}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>")
    row = Encoder(made, None, BaseModel(source).chat_format).completion(CompletionRow("a", "b"))
    return made.convert_ids_to_tokens(row.input_ids[:-1])


IN_4_BITS = {"load_in_4bit": True}
QUANTIZATION = {
    "load_in_4bit": Case(True, of_stored("load_in_4bit"), True),
    "load_in_8bit": Case(True, of_stored("load_in_8bit"), True),
    "bnb_4bit_quant_type": Case("fp4", of_stored("bnb_4bit_quant_type"), "fp4", IN_4_BITS, "nf4"),
    "bnb_4bit_use_double_quant": Case(
        True, of_stored("bnb_4bit_use_double_quant"), True, IN_4_BITS, was=False
    ),
    "bnb_4bit_compute_dtype": Case(
        "float16", of_stored("bnb_4bit_compute_dtype"), "float16", IN_4_BITS, was="bfloat16"
    ),
}
MODEL = {
    "path": Case("gpt2", lambda s, lab: BaseModel(s).config.model_type, "gpt2"),
    "revision": Case("v2", options("revision"), "v2"),
    "dtype": Case("bfloat16", loaded(lambda model: model.dtype), torch.bfloat16, was=torch.float32),
    "attn_implementation": Case(
        "eager", loaded(lambda model: model.config._attn_implementation), "eager"
    ),
    "fused": Case("compile", compiled, {"LlamaRMSNorm"}, was=set()),
    "chat_template": Case("{{ 'hi' }}", tokenizer("chat_template"), "{{ 'hi' }}"),
    "chat_template_kwargs": Case({"loud": True}, answered, "HI!", was="hi!"),
    "chat_template_date": Case("2031-02-03", dated, "2031", was="2024"),
    "lost_text": Case("note", losing, ["hi!"], was="E108"),
    "append_eos": Case(True, ending, "hi!</s>", was="hi!"),
    "tokenize_apart": Case(True, spaced, ["\u2581", "a", "\u2581", "b"], was=["\u2581", "a", "b"]),
    "missing_stop": Case("refuse", ending, "E108", was="hi!"),
    "learn_template": Case("none", ending, "hi", was="hi!"),
    "stop": Case(["Q"], loaded(lambda model: stops(model, 81)), True),
    "tokenizer": Case("gpt2", tokenizer("pad_token_id"), 257),
    "add_tokens": Case(["<new>"], new_token, (1, False), was=(5, False)),
    "add_special_tokens": Case(["<new>"], new_token, (1, True), was=(5, False)),
    "rope_scaling": Case(
        {"rope_type": "linear", "factor": 2.0},
        loaded(lambda model: model.config.rope_parameters["rope_type"]), "linear", was="default",
    ),
}  # fmt: skip


def frequencies(block: RopeScaling, lab: Lab) -> list[float]:
    """Return the angle of each pair of a Llama's head at position 1, and the scale of attention."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(hidden_size=16, num_attention_heads=1, max_position_embeddings=64)
    stretch(config, block)
    rotary = LlamaRotaryEmbedding(config)
    return [*rotary.inv_freq.tolist(), float(rotary.attention_scaling)]


PLAIN = [10_000 ** (-n / 8) for n in range(8)]
HALVED = [*(angle / 2 for angle in PLAIN), 1.0]
YARN, LLAMA3 = {"rope_type": "yarn", "factor": 2.0}, {"rope_type": "llama3", "factor": 2.0}
OF_LLAMA3 = LLAMA3 | {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
LINEAR = {"rope_type": "linear", "factor": 2.0}


def yarn_by_hand(fast: float, slow: float) -> list[float]:
    """Return `frequencies` of yarn with factor 2: Peng et al. 2023, section 3.2, by pairs."""

    def pair(turns: float) -> float:
        return 16 * math.log(64 / (turns * 2 * math.pi)) / (2 * math.log(10_000))

    low, high = max(math.floor(pair(fast)), 0), min(math.ceil(pair(slow)), 15)
    ramp = [min(max((n - low) / (high - low), 0.0), 1.0) for n in range(8)]
    angles = [a * (1 - r) + a / 2 * r for a, r in zip(PLAIN, ramp, strict=True)]
    return [*angles, 0.1 * math.log(2.0) + 1.0]


# A turn of all 64 positions is what lies between what is kept and what is stretched.
ROPE = {
    "rope_type": Case("linear", frequencies, HALVED, also=LINEAR),
    "factor": Case(4.0, frequencies, [*(angle / 4 for angle in PLAIN), 1.0], also=LINEAR),
    "original_max_position_embeddings": Case(
        1, frequencies, HALVED, also=OF_LLAMA3
    ),  # every wave is longer than one position: all are stretched
    "attention_factor": Case(0.5, lambda b, lab: frequencies(b, lab)[-1], 0.5, YARN,
                             was=0.1 * math.log(2.0) + 1.0),
    "beta_fast": Case(1e-3, frequencies, [*PLAIN, 0.1 * math.log(2.0) + 1.0],
                      YARN | {"beta_slow": 1e-4}),
    "beta_slow": Case(0.1, frequencies, yarn_by_hand(32.0, 0.1), YARN, was=yarn_by_hand(32.0, 1.0)),
    "low_freq_factor": Case(99.0, frequencies, HALVED,
                            OF_LLAMA3 | {"high_freq_factor": 100.0}, alone=True),
    "high_freq_factor": Case(1e-3, frequencies, [*PLAIN, 1.0],
                             OF_LLAMA3 | {"low_freq_factor": 1e-4}, alone=True),
}  # fmt: skip

# --- the evaluation ------------------------------------------------------------------------------


def judged(look: Callable[[Any], Any], prompts: int = 0) -> Callable[[Any, Lab], Any]:
    """Return what runs a stage of one step, and looks at its evaluation.

    prompts: how many the training rows have, each that of several; 0: each row has its own.
    """

    def see(settings: EvaluateSettings, lab: Lab) -> Any:
        found = SimpleNamespace(rows=0, trained=0, new=0)
        row_losses, train = evaluation.row_losses, loop.train

        def count(model, rows, *more):
            found.rows = len(rows)
            return row_losses(model, rows, *more)

        def generate(model, tokenizer, prompts, *, max_new_tokens, **_):
            found.new = max_new_tokens
            return ["x"] * len(prompts)

        def counted(model, items, *more, **named):
            found.trained = len(items)
            return train(model, items, *more, **named)

        with lab.patch.context() as patch:
            patch.setattr(evaluation, "row_losses", count)
            patch.setattr(generation, "generate", generate)
            patch.setattr(loop, "train", counted)
            made = stage(lab, evaluate=settings)
            if prompts:
                made["data"]["columns"] = {"prompt": "{group}"}
                train_file = Path(made["data"]["data_files"]["train"])
                rows = [json.loads(line) for line in train_file.read_text().splitlines()]
                grouped = [{**row, "group": f"q{n % prompts}"} for n, row in enumerate(rows)]
                train_file.write_text("".join(json.dumps(row) + "\n" for row in grouped))
            summary = lab.run(made)
        found.names = set(summary.stages["sft"].before)
        text = (summary.folder / "stages" / "sft" / "samples.jsonl").read_text()
        found.samples = len(text.splitlines())
        return look(found)

    return see


def scored(look: Callable[[Any], Any], *losses: float) -> Callable[[Any, Lab], Any]:
    """Return what runs a stage of 6 steps that saves every second one, and looks at what is left.

    losses: those that evaluations find, the first before training.
    """

    def see(settings: EvaluateSettings, lab: Lab) -> Any:
        train = TrainSettings(**SAVING, save_total_limit=9, logging_steps=3)
        left = [9.0, *losses] if losses else []
        with lab.patch.context() as patch:
            if losses:
                patch.setattr(
                    evaluation, "row_losses",
                    lambda _, rows, *more: evaluation.RowLosses(
                        [found := left.pop(0) if left else 9.0] * len(rows), [1] * len(rows), found
                    ),
                )  # fmt: skip
            summary = lab.run(stage(lab, train, settings))
        folder = summary.folder / "stages" / "sft"
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        weights = load_file(folder / "adapter" / "adapter_model.safetensors")
        name, tensor = next((k, v) for k, v in weights.items() if "lora_B" in k)
        key = f"model/{name.replace('.weight', '.default.weight')}"
        states = sorted(folder.glob("checkpoints/step-*/state.safetensors"))
        return look(
            SimpleNamespace(
                steps=summary.stages["sft"].steps,
                best=summary.stages["sft"].metrics.get("best_step"),
                compared={k for k in summary.stages["sft"].metrics if k.startswith("best_")},
                scores=[line for line in lines if line["phase"] == "score"],
                result=[s.parent.name for s in states if torch.equal(load_file(s)[key], tensor)],
            )
        )

    return see


def at_steps(found: Any) -> list[int]:
    return [line["step"] for line in found.scores]


def with_answers(found: Any) -> list[int]:
    return [line["step"] for line in found.scores if "exact_match" in line]


EVERY_2 = {"eval_strategy": "steps", "eval_steps": 2}
ANSWERS = {"metrics": ["exact_match"]}
EVALUATE = {
    "metrics": Case(
        ["perplexity", "f1"], judged(lambda found: found.names), {"perplexity", "f1"}, was={"loss"}
    ),
    "split": Case("test", judged(lambda found: found.rows), 7, was=4),
    "holdout": Case(0.25, judged(lambda found: (found.rows, found.trained)), (3, 9), was=(4, 12)),
    "holdout_by": Case(
        "prompt", judged(lambda found: (found.rows, found.trained), prompts=3), (4, 8),
        also={"holdout": 2}, was=(2, 10),
    ),
    "limit": Case(2, judged(lambda found: found.rows), 2, was=4),
    "max_new_tokens": Case(5, judged(lambda found: found.new), 5, also=ANSWERS, was=32),
    "samples": Case(3, judged(lambda found: found.samples), 6, also=ANSWERS, was=8),
    "eval_strategy": Case("epoch", scored(at_steps), [3, 6], was=[]),
    "eval_steps": Case(
        0.6, scored(at_steps), [4, 6], also={"eval_strategy": "steps"}, was=[3, 6]
    ),
    "generate_every": Case(
        2, scored(with_answers), [4], also={**EVERY_2, "metrics": ["loss", "exact_match"]}, was=[]
    ),
    "load_best_model_at_end": Case(
        True, scored(lambda found: found.result, 2.0, 1.0, 3.0), ["step-4"], also=EVERY_2,
        was=["step-6"],
    ),
    "metric_for_best_model": Case(
        "perplexity", scored(lambda found: found.compared), {"best_step", "best_perplexity"},
        also={**EVERY_2, "metrics": ["loss", "perplexity"]}, was=set(),
    ),
    "greater_is_better": Case(
        True, scored(lambda found: found.best, 2.0, 1.0, 3.0), 6,
        also={**EVERY_2, "metric_for_best_model": "loss"}, was=4,
    ),
    "early_stopping_patience": Case(
        1, scored(lambda found: found.steps, 1.0, 2.0, 3.0), 4, also=EVERY_2, was=6
    ),
    "early_stopping_threshold": Case(
        0.5, scored(lambda found: found.steps, 3.0, 2.9, 2.8), 4,
        also={**EVERY_2, "early_stopping_patience": 1}, was=6,
    ),
}  # fmt: skip

# --- the test ------------------------------------------------------------------------------------

CASES = {
    TrainSettings: TRAIN, ModelSource: MODEL, Quantization: QUANTIZATION,
    EvaluateSettings: EVALUATE, LrSchedulerKwargs: LR_KWARGS, RopeScaling: ROPE,
}  # fmt: skip


def test_every_field_has_a_case():
    missing = {cls.__name__: without_case(cls, cases) for cls, cases in CASES.items()}
    assert not any(missing.values()), missing


@pytest.mark.parametrize(
    ("cls", "name"), [(cls, name) for cls, cases in CASES.items() for name in cases]
)
def test_a_setting_acts(cls, name, tmp_path, tmp_path_factory, monkeypatch, run):
    case, base = CASES[cls][name], {}
    if cls is ModelSource:
        folders = _folders(tmp_path_factory.getbasetemp())
        base = {"path": folders["llama"]}
        if isinstance(case.value, str) and case.value in folders:
            case = Case(folders[case.value], case.see, case.seen)
    check(cls, name, case, Lab(tmp_path, monkeypatch, run), **base)


@pytest.mark.parametrize(("every", "layers"), [(1, [True, True]), (2, [True, False])])
def test_every_nth_layer_is_computed_again(every, layers, tmp_path, monkeypatch, run):
    settings = TrainSettings(
        gradient_checkpointing=True, gradient_checkpointing_kwargs={"every_n_layers": every}
    )
    see = to_train(lambda model, items: checkpointed(model))
    assert see(settings, Lab(tmp_path, monkeypatch, run)) == layers


WRAPPED = {"packing": True, "packing_strategy": "wrapped", "max_length": 8}


def test_wrapped_cuts_long_rows_unless_something_else_is_said():
    assert TrainSettings(**WRAPPED).on_long_row == "split"
    assert TrainSettings(**WRAPPED, on_long_row="split").packs_apart
    assert not TrainSettings(**WRAPPED, cross_document_attention=True).packs_apart
    assert TrainSettings(packing=True, max_length=8).on_long_row == "truncate"


def test_offloading_without_what_it_is_about_is_refused():
    with pytest.raises(ValueError, match=r"which only gradient_checkpointing: true keeps"):
        TrainSettings(activation_offloading=True)


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"packing_strategy": "wrapped"}, "is about packed rows; write packing: true"),
        (
            {"gradient_checkpointing_kwargs": {"every_n_layers": 2}},
            "is about gradient_checkpointing; set that to true",
        ),
        ({"cross_document_attention": True}, "packing_strategy: wrapped fills"),
        ({**WRAPPED, "on_long_row": "drop"}, "on_long_row: drop has no effect"),
        ({"save_steps": 4}, "save_steps has no effect with save_strategy 'no', the default"),
    ],
)
def test_what_has_no_effect_or_contradicts_itself_is_refused(block, words):
    with pytest.raises(ValueError, match=words):
        TrainSettings.model_validate(block)
