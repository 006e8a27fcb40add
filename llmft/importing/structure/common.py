"""What several peers say in the same way: transformers' TrainingArguments, PEFT's LoRA, rows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from llmft.importing.configuration import Key
from llmft.importing.peer_translation import Translation
from llmft.importing.tables import known_rows
from llmft.recipes.tree import visible
from llmft.system.architectures import architecture_of

# --- steps, schedule, saving: TrainingArguments


def steps(t: Translation) -> None:
    """Write the number of steps, or of epochs where that is not limited; -1 is no limit."""
    most, key = t.get("max_steps"), t.key("max_steps")
    epochs = t.key("num_train_epochs")
    if isinstance(most, int) and not isinstance(most, bool) and most > 0:
        t.set("train.max_steps", most, key)
        if epochs is not None:
            t.note("none", epochs, "max_steps ends the training", block="train")
        return
    if key is not None and most != -1:
        t.set("train.max_steps", most, key)
    elif key is not None:
        t.note("none", key, "no limit; the number of epochs applies", block="train")
    value(t, "train.num_train_epochs", "num_train_epochs")


def value(t: Translation, home: str, name: str, why: str = "") -> bool:
    """Set a setting to what a key says, or to the peer's default with a comment."""
    found, key = t.get(name), t.key(name)
    if found is None:
        return False
    why = why or ("" if key else f"the default of {t.origin}")
    return t.set(home, number(found), key, why, said=name)


def number(found: Any) -> Any:
    if isinstance(found, str):
        try:
            return float(found)
        except ValueError:
            return found
    return found


def schedule(
    t: Translation, name: str = "lr_scheduler_type", kwargs: str = "lr_scheduler_kwargs"
) -> None:
    """Write the schedule with its arguments, and the warm-up where the schedule has one."""
    kind = t.get(name)
    value(t, "train.lr_scheduler_type", name)
    inner = {n: k.value for n, k in t.configuration.under(kwargs).items()}
    for inside in inner:
        t.taken.add(f"{kwargs}.{inside}")
    if inner:
        first = t.key(f"{kwargs}.{next(iter(inner))}")
        t.set("train.lr_scheduler_kwargs", inner, first)
    ratio, ratio_key = t.get("warmup_ratio"), t.key("warmup_ratio")
    count, count_key = t.get("warmup_steps"), t.key("warmup_steps")
    count, ratio = number(count or 0), number(ratio or 0)
    if kind == "constant":
        for key in (ratio_key, count_key):
            if key is not None and key.value:
                t.note("none", key, "the constant schedule ignores it", block="train")
        return
    if isinstance(count, int | float) and 0 < count < 1:  # transformers 5: a share of the steps
        t.set("train.warmup_ratio", count, count_key, "below 1 it is a share of all steps")
    elif count:
        t.set("train.warmup_steps", int(count) if count == int(count) else count, count_key)
        if ratio_key is not None and ratio:
            t.note("none", ratio_key, "warmup_steps goes before", block="train")
    elif ratio_key is not None and ratio:
        t.set("train.warmup_ratio", ratio, ratio_key)
    elif ratio:
        value(t, "train.warmup_ratio", "warmup_ratio")


def weight_decay(t: Translation, name: str = "weight_decay") -> None:
    """Write the weight decay; transformers leaves biases and norms out, which LoRA has none of."""
    found = t.get(name)
    value(t, "train.weight_decay", name)
    if found and t.draft.get("adapter.method") == "full":
        t.note(
            "decide",
            t.key(name) or name,
            "transformers does not decay biases and norms; here every trained weight decays",
            missing="weight decay of a full fine-tuning",
        )


def checkpointing(t: Translation, name: str = "gradient_checkpointing") -> None:
    """Write whether activations are computed again, which costs time and changes no number."""
    found, key = t.get(name), t.key(name)
    t.set("train.gradient_checkpointing", bool(found), key, "" if key else _unstated(t, name))
    other = t.key("activation_checkpointing")
    if other is not None:
        t.set("train.gradient_checkpointing", bool(other.value), other)


def _unstated(t: Translation, name: str) -> str:
    return f"the default of {t.origin}"


def saving(t: Translation) -> None:
    """Write when checkpoints are saved: nothing that is trained depends on it."""
    strategy, key = t.get("save_strategy"), t.key("save_strategy")
    strategy = "no" if strategy is False else strategy
    every, every_key = number(t.get("save_steps")), t.key("save_steps")
    if strategy == "best":
        t.note(
            "logging", key or "save_strategy", "checkpoints are kept by their score", block="train"
        )
        return
    t.set("train.save_strategy", strategy, key, "" if key else _unstated(t, "save_strategy"))
    if strategy == "steps" and every:
        if isinstance(every, float) and every >= 1:
            every = int(every)
        share = isinstance(every, float)
        if share and "Interval" not in _annotation("save_steps"):
            t.note(
                "logging",
                every_key or "save_steps",
                "checkpoints at a share of the run",
                block="train",
            )
            t.set("train.save_strategy", "epoch", key, "save_steps below 1 is a share of the run")
        else:
            why = "" if every_key else _unstated(t, "save_steps")
            t.set("train.save_steps", every, every_key, why)
    elif every_key is not None:
        t.note("none", every_key, f"checkpoints are saved by '{strategy}'", block="train")
    kept = t.key("save_total_limit")
    if kept is not None and kept.value == 1:
        t.set("train.save_total_limit", 2, kept, "a run here keeps the last two at least")
        t.note("logging", kept, "a run here keeps the last two checkpoints at least", block="train")
    elif kept is not None:
        t.set("train.save_total_limit", kept.value, kept)


def _annotation(name: str) -> str:
    from llmft.api.settings import TrainSettings

    field = TrainSettings.model_fields[name].annotation
    return "Interval" if "float" in str(field) else str(field)


def trackers(t: Translation, name: str = "report_to") -> None:
    """Write the trackers; one that is not installed is told."""
    key = t.key(name)
    if key is None:
        return
    asked = key.value if isinstance(key.value, list) else str(key.value).split(",")
    wanted = [str(one).strip() for one in asked if str(one).strip() not in ("", "none", "None")]
    known = t.schema.registry.names("tracker")
    for unknown in [one for one in wanted if one not in known]:
        t.note(
            "logging",
            key,
            f"no tracker is installed that is called '{visible(unknown)[:40]}'",
            missing=f"tracker {visible(unknown)[:40]}",
        )
    use_trackers(t, [one for one in wanted if one in known], key)


def use_trackers(t: Translation, names: Sequence[str], key: Key) -> None:
    """Add trackers beside the terminal's and the file's."""
    if names:
        methods = dict.fromkeys(["console", "jsonl", *names])
        t.draft.set("trackers", [{"method": name} for name in methods], key)


def hub(t: Translation) -> None:
    """Write where the result is sent, where the peer sends it."""
    asked, private, id_key = t.key("push_to_hub"), t.key("hub_private_repo"), t.key("hub_model_id")
    if asked is None or asked.value is not True:
        for key in (id_key, private):
            if key is not None:
                t.note("none", key, "nothing is sent to the hub without push_to_hub")
        return
    name = str(id_key.value) if id_key else PurePath(str(t.get("output_dir") or "model")).name
    why = "" if id_key else "no hub_model_id: transformers takes the folder's name"
    t.set("push_to_hub.repo_id", name, id_key or asked, why)
    if private is not None:
        t.set("push_to_hub.private", bool(private.value), private)
    else:
        t.note(
            "logging", asked, "the repository is private here unless push_to_hub.private is false"
        )


def evaluation(
    t: Translation,
    *,
    split: str | None = None,
    holdout: float | None = None,
    key: Key | None = None,
) -> None:
    """Write on which rows and when the stage is scored.

    split, holdout: the rows, as the peer says it. Nothing that is trained depends on it, except
    where the best checkpoint is taken or training stops early.
    """
    strategy = t.get("eval_strategy")
    old = t.key("evaluation_strategy")
    strategy_key = t.key("eval_strategy") or old
    if old is not None:
        strategy = old.value
    strategy = "no" if strategy in (False, None) else str(strategy)
    every, every_key = number(t.get("eval_steps")), t.key("eval_steps")
    do_eval = t.key("do_eval")
    best = bool(t.get("load_best_model_at_end"))
    patience = t.key("early_stopping_patience")
    block = "evaluate"
    if strategy == "no" and not holdout:
        for unused in (every_key, do_eval, strategy_key):
            if unused is not None and unused.value not in (False, "no"):
                t.note("none", unused, "nothing is scored during training without eval_strategy")
        for name in ("load_best_model_at_end", "metric_for_best_model", "greater_is_better"):
            if (found := t.key(name)) is not None and found.value:
                t.note("none", found, "nothing is scored during training without eval_strategy")
        return
    if holdout:
        t.set("evaluate.holdout", holdout, key)
    elif split:
        t.set("evaluate.split", split, key)
    if do_eval is not None:
        t.note("none", do_eval, "follows from eval_strategy", block=block)
    without: Any = "cannot" if best or patience else "logging"
    if strategy != "no":
        t.set("evaluate.eval_strategy", strategy, strategy_key, without=without)
        if strategy == "steps" and every:
            if isinstance(every, float) and every >= 1:
                every = int(every)
            t.set("evaluate.eval_steps", every, every_key, without=without)
        elif every_key is not None:
            t.note("none", every_key, f"evaluation is by '{strategy}'", block=block)
    for name in (
        "load_best_model_at_end",
        "metric_for_best_model",
        "greater_is_better",
        "early_stopping_patience",
    ):
        found = t.key(name)
        if found is None or (found.value in (None, False) and name == "load_best_model_at_end"):
            continue
        said = found.value
        if name == "metric_for_best_model" and isinstance(said, str):
            said = said.removeprefix("eval_")
        t.set(f"evaluate.{name}", said, found, without=without)


def training_arguments(t: Translation) -> None:
    """Translate what every user of TrainingArguments says."""
    steps(t)
    schedule(t)
    weight_decay(t)
    checkpointing(t)
    saving(t)
    trackers(t)
    hub(t)


# --- the model


_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "half": "float16"}


def dtype(t: Translation, name: str, key: Key | None) -> None:
    """Write the type of the base's weights; 'auto' is the checkpoint's own."""
    name = _DTYPES.get(name.removeprefix("torch."), name.removeprefix("torch."))
    t.set("model.dtype", name, key, "" if key else _unstated(t, "dtype"))


def attention(t: Translation, name: str = "attn_implementation") -> str:
    """Tell of the peer's attention code; here the padding-free one is taken where it can be."""
    key = t.key(name)
    if key is None:
        return ""
    kind = str(key.value)
    if kind in ("eager", "sdpa"):
        t.note(
            "none", key, "the same numbers, up to rounding, as the attention here", block="model"
        )
    elif re.search(r"flash|fa[23]|flex|xformers|sage|auto|disabled", kind):
        t.note(
            "speed",
            key,
            "another attention kernel; here rows are padding-free in any case",
            block="model",
        )
    else:
        t.note(
            "cannot",
            key,
            f"attention code '{visible(kind)[:60]}'",
            block="model",
            missing=f"attention {visible(kind)[:60]}",
        )
    return kind


# --- LoRA

# PEFT 0.21's TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, for the families known here.
_PEFT_TARGETS = {
    "llama": ["q_proj", "v_proj"],
    "mistral": ["q_proj", "v_proj"],
    "mixtral": ["q_proj", "v_proj"],
    "qwen2": ["q_proj", "v_proj"],
    "qwen3": ["q_proj", "v_proj"],
    "gemma": ["q_proj", "v_proj"],
    "gemma2": ["q_proj", "v_proj"],
    "gemma3_text": ["q_proj", "v_proj"],
    "opt": ["q_proj", "v_proj"],
    "gpt2": ["c_attn"],
    "gpt_neox": ["query_key_value"],
    "bloom": ["query_key_value"],
    "falcon": ["query_key_value"],
    "phi": ["q_proj", "v_proj", "fc1", "fc2"],
}


def targets(t: Translation, name: str, *, every: Sequence[str] = ("all-linear",)) -> None:
    """Write which layers get an update; PEFT's own choice for the family where none is named.

    every: the peer's words for every linear layer but the last.
    """
    key = t.key(name)
    found = key.value if key else None
    if isinstance(found, str) and found not in every:
        listed = [part.strip() for part in found.split(",")] if "," in found else [found]
        if len(listed) == 1 and re.search(r"[*+?()\\|\[\]^$]", found):
            t.note(
                "cannot",
                key,
                "target_modules as one regular expression",
                block="adapter",
                missing="target_modules as one regular expression",
            )
            return
        found = listed
    if isinstance(found, list) and len(found) == 1 and found[0] in every:
        found = found[0]
    if isinstance(found, str):
        t.set("adapter.target_modules", "all-linear", key)
    elif found:
        t.set("adapter.target_modules", [str(one) for one in found], key)
    else:
        path = str(t.draft.get("model.path") or t.get("model_name_or_path") or "")
        family = architecture_of(path)
        chosen = _PEFT_TARGETS.get(family.model_type) if family else None
        if chosen is None:
            t.note(
                "decide",
                key or name,
                f"PEFT chooses the layers by the architecture; that of"
                f" '{visible(path)[:80]}' is not known here",
                missing=f"{name} not stated",
                block="adapter",
            )
        else:
            assert family is not None
            why = f"{name}: not stated; PEFT's choice for {family.model_type}"
            t.set("adapter.target_modules", chosen, None, why)


def full(t: Translation, key: Key | None, why: str = "") -> None:
    """Choose full fine-tuning."""
    t.method("adapter", "full", key, why)


def weights_of_full(t: Translation, sharding: Key | None) -> None:
    """Say whether bfloat16 weights are trained themselves: so it is in a Trainer by itself.

    sharding: the key of DeepSpeed or of FSDP, both of which keep float32 copies beside them.
    """
    if t.draft.get("adapter.method") != "full" or t.draft.get("model.dtype") != "bfloat16":
        return
    if sharding is None:
        why = f"{t.table.title} trains the bfloat16 weights themselves"
        t.set("adapter.pure_bf16", True, None, why)
    else:
        what = "the launcher's sharding keeps float32 copies of the weights, as is the default here"
        t.note("none", None, what, block="adapter")


# --- rows

_SPLIT = re.compile(r"([\w.-]+)(?:\[:(\d+)(%?)\])?")


def split(t: Translation, name: str, key: Key | None) -> None:
    """Write the split, and the number of rows where it names one: train[:500]."""
    found = _SPLIT.fullmatch(name)
    if found is None or found[3]:
        if t.schema.has("data.split", t.methods):
            t.note(
                "cannot",
                key or "split",
                f"a part of a split such as '{visible(name)[:60]}'",
                block="data",
                missing="split by share or joined",
            )
        return
    if found[1] != "train" or key is not None:
        t.set("data.split", found[1], key)
    if found[2]:
        t.set("data.limit", int(found[2]), key, "the first rows of the split")


def facts_of(path: str) -> Mapping[str, Any] | None:
    """Return what is known of a public data set's rows: `form` and columns."""
    return known_rows().get(path.lower())


def source(t: Translation, path: str, key: Key | None, subset: Key | None = None) -> None:
    """Write where the rows are."""
    t.set("data.path", path, key)
    if subset is not None:
        t.set("data.subset", str(subset.value), subset)


def batch_of_processes(t: Translation) -> None:
    """Let one process take the rows of a step that several took together."""
    if t.processes == 1:
        return
    entry = t.draft.entry("train.gradient_accumulation_steps")
    steps = entry.value if entry else 1
    if not isinstance(steps, int):
        return
    why = (
        f"{steps} in each of {t.processes} processes: one process takes all rows of a step here;"
        f" started with {t.processes} processes, write {steps}"
    )
    key = entry.flag if entry else None
    t.draft.set("train.gradient_accumulation_steps", steps * t.processes, key, why)


FORMS = ("chat", "prompt-completion", "text", "preference", "prompts", "unpaired", "instruction")
"""What `--rows` may name: the forms of rows."""

_FITTING = {
    "sft": ("chat", "prompt-completion", "text", "instruction"),
    "dpo": ("preference",),
    "orpo": ("preference",),
    "reward": ("preference",),
    "cpo": ("preference",),
    "kto": ("unpaired",),
    "ppo": ("prompts",),
    "grpo": ("prompts",),
    "rloo": ("prompts",),
}


def form_of(t: Translation, path: str, key: Key | None, trainer: str) -> tuple[str, dict[str, Any]]:
    """Return the form of a data set's rows and what is known of its columns; '' where unknown.

    The peer looks at the columns when it runs; here the user says it, or the table of known data
    sets does, or the alignment leaves one choice only.
    """
    fitting = _FITTING.get(trainer, ())
    facts = dict(facts_of(path) or {})
    form = t.rows or str(facts.pop("form", ""))
    if t.rows:
        facts = {}
    facts.pop("source", None)
    if form and fitting and form not in fitting:
        t.note(
            "cannot",
            key or path,
            f"'{trainer}' cannot train on rows of the form '{form}'",
            block="data",
            missing="rows of another form",
        )
        return "", {}
    if not form and len(fitting) == 1 and fitting[0] != "preference":
        form = fitting[0]
    if not form:
        hint = " or ".join(fitting) or "chat"
        t.note(
            "decide",
            key or path,
            f"the columns of '{visible(path)[:80]}' decide how it is trained on, and they are not"
            f" known here: --rows {hint}",
            block="data",
            missing="the form of the rows is not in the file",
        )
    return form, facts


def rows_of(t: Translation, form: str, facts: Mapping[str, Any], *, learn: str) -> None:
    """Choose the data's method for a form, and name its columns.

    facts: columns that differ from the usual names. learn: which turns of a chat are learnt.
    """
    columns = {name: column for name, column in facts.items() if name not in ("messages", "why")}
    if form == "chat":
        t.method("data", "chat")
        if messages := facts.get("messages"):
            t.set("data.messages_column", messages)
        t.set("data.learn", learn)
        return
    if form == "text":
        t.method("data", "jsonl")
        t.set("data.columns.text", columns.get("text", "text"))
        return
    if form == "prompt-completion":
        t.method("data", "jsonl")
    elif form == "preference":
        t.method("data", "preference")
        if facts.get("chat"):
            t.set("data.chat", True)
        columns.pop("chat", None)
    elif form == "prompts":
        t.method("data", "prompts")
        if facts.get("chat"):
            t.set("data.chat", True)
        columns.pop("chat", None)
    elif form == "unpaired":
        t.method("data", "unpaired")
    else:
        t.method("data", "instruction")
    for name, column in columns.items():
        t.set(f"data.columns.{name}", column)
