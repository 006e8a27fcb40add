"""What cannot stay as a command says it, and why: one rule each, told in a comment."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel

from llmft.importing.draft import Draft
from llmft.importing.flags import MOVED_MODELS, RENAMED
from llmft.system.architectures import ARCHITECTURES_BY_NAME, ENDS, architecture_of

_INSTRUCT = re.compile(r"(?:^|[-_/])(?:instruct|chat|it)(?:$|[-_/])", re.IGNORECASE)


def model_moved(draft: Draft) -> None:
    """Name the hub's copy of a model whose folder exists on Kaggle only."""
    entry = draft.entry("model.path")
    for pattern, target in MOVED_MODELS if entry else ():
        assert entry is not None
        if match := re.fullmatch(pattern, str(entry.value)):
            why = "a folder of Kaggle's; this is the same model on the hub"
            draft.set("model.path", match.expand(target), entry.flag, why)


def values_renamed(draft: Draft) -> None:
    """Write other tools' words for a value in ours."""
    for entry in list(draft.entries):
        value = entry.value[0] if isinstance(entry.value, list) and entry.value else entry.value
        ours = RENAMED.get((entry.home, value)) if isinstance(value, str) else None
        if ours is not None:
            draft.set(entry.home, ours, entry.flag, f"'{value}' is called '{ours}' here")


def targets_that_exist(draft: Draft) -> None:
    """Leave out target modules that the model's family does not have."""
    entry, family = (
        draft.entry("adapter.target_modules"),
        architecture_of(draft.get("model.path") or ""),
    )
    if entry is None or family is None or not isinstance(entry.value, list):
        return
    known = set(family.layers)
    known |= {"all-linear", *ENDS}
    missing = [n for n in entry.value if n.isidentifier() and n not in known]
    if not missing:
        return
    kept = [name for name in entry.value if name not in missing]
    others = [
        other.model_type for other in ARCHITECTURES_BY_NAME if set(missing) <= set(other.layers)
    ]
    have = f" (but of {', '.join(others[:3])})" if others else ""
    instead = "left out" if kept else "all-linear takes every linear layer instead"
    why = f"no layer of {family.model_type}{have} is called {' or '.join(missing)}; {instead}"
    draft.set(entry.home, kept or "all-linear", entry.flag, why)


def warmup_that_acts(draft: Draft) -> None:
    """Leave a warm-up out beside the constant schedule, which ignores it."""
    for name in ("warmup_ratio", "warmup_steps"):
        entry = draft.entry(f"train.{name}")
        if entry is None or draft.get("train.lr_scheduler_type") != "constant":
            continue
        assert entry.flag is not None
        why = (
            "the constant schedule ignores it; for a warm-up write"
            f" lr_scheduler_type: constant_with_warmup and {name}: {entry.raw or entry.value}"
        )
        draft.leave_out("train", entry.flag, why)


def steps_that_count(draft: Draft) -> None:
    """Leave --max_steps -1 out: transformers' word for no such limit."""
    entry = draft.entry("train.max_steps")
    if entry is not None and entry.flag and entry.value == -1:
        draft.leave_out("train", entry.flag, "the number of epochs applies, as is the default here")


def offload_without_gpu(draft: Draft) -> None:
    """Turn DoRA's use of a GPU off, so that the recipe runs without one."""
    entry = draft.entry("adapter.ephemeral_gpu_offload")
    if entry is not None and entry.value is True:
        why = (
            "true needs a GPU, and is refused where there is none; it only matters where"
            " the base's weights are kept on the CPU"
        )
        draft.set(entry.home, False, entry.flag, why)


def encoder_that_acts(draft: Draft) -> None:
    """Leave out settings of an encoder that the adapter does not have; PEFT ignores them there."""
    method = draft.get("adapter.method")
    names: tuple[str, ...] = ()
    if method == "prefix" and not draft.get("adapter.prefix_projection"):
        names, without, instead = (
            ("encoder_hidden_size",),
            "a projection",
            "prefix_projection: true",
        )
    elif method == "ptuning" and draft.get("adapter.encoder_reparameterization_type") != "LSTM":
        names, without = ("encoder_num_layers", "encoder_dropout"), "an LSTM"
        instead = "encoder_reparameterization_type: LSTM"
    for name in names:
        entry = draft.entry(f"adapter.{name}")
        if entry is not None and entry.flag is not None:
            why = (
                f"PEFT ignores it without {without}; to train with one write {instead} and"
                f" {name}: {entry.raw or entry.value}"
            )
            draft.leave_out("adapter", entry.flag, why)


def uploaded_where_asked(draft: Draft) -> None:
    """Make a block of --push_to_hub True; without it nothing is sent, whatever else is said."""
    asked = draft.entry("push_to_hub")
    if asked is None or asked.value is not True:
        for entry in [e for e in draft.entries if e.home.partition(".")[0] == "push_to_hub"]:
            if entry.flag:
                draft.leave_out("", entry.flag, "nothing is sent to the hub, as by default here")
        return
    draft.entries.remove(asked)
    if draft.get("push_to_hub.repo_id") is None:
        repo_id = PurePath(str(draft.get("output_dir") or draft.get("adapter.method"))).name
        why = "no --hub_model_id: transformers takes the folder's name"
        draft.set("push_to_hub.repo_id", repo_id, asked.flag, why)


def asked_as_it_learnt(draft: Draft, data: type[BaseModel]) -> None:
    """Ask an instruct model through its chat template, where the data can."""
    model = str(draft.get("model.path") or "")
    if _INSTRUCT.search(model) and "chat" in data.model_fields and draft.get("data.chat") is None:
        why = "not in the command: an instruct model was trained with its chat template"
        draft.set("data.chat", True, None, why)


RULES: tuple[Callable[[Draft], Any], ...] = (
    model_moved,
    values_renamed,
    targets_that_exist,
    warmup_that_acts,
    steps_that_count,
    offload_without_gpu,
    encoder_that_acts,
    uploaded_where_asked,
)
