"""From the flags of a command to the draft of a recipe."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

from llmft.api.errors import Fault, RecipeError
from llmft.importing.changes import RULES, asked_as_it_learnt
from llmft.importing.commandline import Command, Flag
from llmft.importing.draft import Draft, Entry
from llmft.importing.flags import (
    ADAPTED,
    HOMELESS,
    HOMES,
    METHODS,
    OTHER_ALIGNMENTS,
    TASKS,
    TEXTS,
    suggested_fix,
)
from llmft.recipes.foreign import REMARKS
from llmft.recipes.scalar import scalar
from llmft.recipes.tree import visible
from llmft.registry.registry import Registry

_STORED = "model.quantization."


def translate(command: Command, registry: Registry, method: str | None = None) -> Draft:
    """Return the draft of the recipe that a command comes to.

    method: the adapter, where the caller knows better than the command.
    Raises RecipeError with every flag that is unknown.
    """
    _refuse_other_alignments(command)
    draft = Draft()
    if command.launcher:
        why = f"'{command.launcher}' is not taken over: a recipe does not say how it is launched"
        draft.entries.append(Entry("", None, why=why))
    said = _said_methods(command, method)
    chosen = said[0][1]
    _choose(draft, said)
    draft.set("alignment.method", "sft")
    adapter = set(registry.method("adapter", chosen).Config.model_fields)
    faults: list[Fault] = []
    for flag in command.flags:
        home = HOMES.get(flag.name)
        if home == "adapter.method":
            continue  # heard above
        if home and home.startswith(_STORED) and home.removeprefix(_STORED) in adapter:
            home = f"adapter.{home.removeprefix(_STORED)}"  # it quantises the base itself
        if home in TEXTS and len(flag.values) != 1:
            what = f"--{flag.name} takes one value, and has {len(flag.values)} here"
            faults.append(Fault("E091", what, "quote it, if it is one", place=flag.place))
        elif home is None:
            faults += _homeless(draft, flag)
        elif home.startswith("adapter.") and home.removeprefix("adapter.") not in adapter:
            draft.leave_out("adapter", flag, f"'{chosen}' has no such setting")
        else:
            _READERS.get(flag.name, _renamed)(draft, home, flag, registry)
    for first, second in draft.clashes:
        what = (
            f"'{visible(str(first))[:80]}' and '{visible(str(second))[:80]}' are one setting here"
        )
        faults.append(Fault("E091", what, "keep one of the two", place=second.place))
    for home, flag_name in (("model.path", "model_id"), ("data.method", "dataset_name")):
        if draft.get(home) is None:
            what = f"no flag gives {home}"
            faults.append(Fault("E091", what, f"add --{flag_name}", place=command.place))
    if faults:
        raise RecipeError.of(faults)
    for rule in RULES:
        rule(draft)
    asked_as_it_learnt(draft, registry.method("dataset", draft.get("data.method")).Config)
    return draft


def _refuse_other_alignments(command: Command) -> None:
    """Refuse a script that trains by something else than sft: its rows and flags are others."""
    words = re.findall(r"[a-z]+", PurePath(command.script).stem.lower())
    others = [word for word in words if word in OTHER_ALIGNMENTS]
    if others and "sft" not in words:
        what = f"{command.script} trains by {others[0]}, and what is imported becomes sft"
        fix = "begin with a recipe of its kind: llmft list-recipes"
        raise RecipeError("E091", what, fix=fix, place=command.place)


# --- which adapter

Said = list[tuple[str, str, Flag | None]]
"""Who says which adapter is meant: in words, the method, the flag. The first one is followed."""


def _said_methods(command: Command, method: str | None) -> Said:
    said: Said = [("--method", method, None)] if method else []
    flags = {flag.name: flag for flag in command.flags}
    use_dora, peft_type = flags.get("use_dora"), flags.get("peft_type")
    if use_dora and _value(use_dora) is True:
        said.append((f"'{use_dora}'", "dora", use_dora))
    titles = [(title, _method(title)) for title in command.headings]
    said += [(f"the title '{title}'", found, None) for title, found in titles[::-1] if found][:1]
    script = _method(PurePath(command.script).stem)
    if script:
        said.append((f"the script {command.script}", script, None))
    if peft_type:
        found = _method(" ".join(peft_type.values))
        if found is None:
            what = f"'{visible(str(peft_type))[:80]}' is no adapter's name here"
            fix = f"write one of {', '.join(sorted(set(METHODS.values())))}"
            raise RecipeError("E024", what, fix=fix, place=peft_type.place)
        said.append((f"'{peft_type}'", found, peft_type))
    if not said and any(HOMES.get(name) == "adapter.r" for name in flags):
        said.append(("--lora_r", "lora", None))
    if not said:
        what = "neither the script's name nor a flag says which adapter is meant"
        raise RecipeError("E091", what, fix="add --method lora", place=command.place)
    return said


def _method(text: str) -> str | None:
    return METHODS.get(re.sub(r"[^a-z]", "", text.lower()))


def _choose(draft: Draft, said: Said) -> None:
    who, chosen, flag = said[0]
    others = list(dict.fromkeys(f"{w} says {m}" for w, m, _ in said[1:] if m != chosen))
    # A refinement of LoRA is no contradiction: lora.py with --use_dora True.
    quarrel = others if (flag is None or flag.name != "use_dora") else []
    why = "; ".join([f"{who} says so", *quarrel]) if quarrel else ""
    draft.set("adapter.method", chosen, flag, why)


# --- the flags


def _homeless(draft: Draft, flag: Flag) -> list[Fault]:
    """Note a flag that sets nothing here; return a fault where that cannot be."""
    if flag.name in HOMELESS:
        block, why = HOMELESS[flag.name]
        draft.leave_out(block, flag, why)
        return []
    if flag.name in TASKS:
        block, only, why = TASKS[flag.name]
        if flag.values == (only,):
            draft.leave_out(block, flag, f"it is {why}")
            return []
        return [Fault("E091", f"'{visible(str(flag))[:80]}' is not trained here", place=flag.place)]
    if flag.name in ADAPTED:
        if _value(flag) is True:
            draft.leave_out("adapter", flag, "an adapter is what is trained here in any case")
            return []
        what = f"'{visible(str(flag))[:80]}' trains without an adapter: all weights"
        return [Fault("E091", what, "leave it out, and add --method full", place=flag.place)]
    if flag.name in REMARKS and _value(flag) in (False, "no"):
        draft.leave_out("", flag, "off, and there is no such setting here")
        return []
    if flag.name in ("eval_strategy", "evaluation_strategy"):
        if _value(flag) in (False, "no"):
            draft.leave_out("", flag, "off, as is the default here")
            return []
        what = f"'{visible(str(flag))[:80]}' needs held-out rows, which the command does not name"
        fix = "leave it out, and set evaluate.eval_strategy in the recipe"
        return [Fault("E091", what, fix, place=flag.place)]
    what = f"unknown flag --{visible(flag.name)[:80]}"
    return [Fault("E091", what, suggested_fix(flag.name), place=flag.place)]


def _value(flag: Flag) -> Any:
    """Return what is written after a flag; a flag alone means true."""
    values = [scalar(value) for value in flag.values]
    return values[0] if len(values) == 1 else values or True


def _renamed(draft: Draft, home: str, flag: Flag, registry: Registry) -> None:
    value = _value(flag)
    if home in TEXTS:
        value = flag.values[0] or None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    raw = flag.values[0] if is_number else ""
    if value is None:
        draft.leave_out(home.rpartition(".")[0], flag, "nothing is given")
    else:
        draft.set(home, value, flag, raw=raw)


def _names(draft: Draft, home: str, flag: Flag, registry: Registry) -> None:
    # a b, "a,b", and the lists of JSON and Python: '["a", "b"]'
    names = [name for value in flag.values for name in re.split(r"[][\s,'\"]+", value) if name]
    draft.set(home, "all-linear" if names == ["all-linear"] else names, flag)


def _dataset(draft: Draft, home: str, flag: Flag, registry: Registry) -> None:
    """A data set's name is a method's, or else a file or a hub id."""
    name = " ".join(flag.values)
    if name in registry.names("dataset"):
        draft.set("data.method", name, flag)
        return
    why = f"no method is called '{name}', so it is read as a path; check data.columns"
    draft.set("data.method", "jsonl", None, why)
    draft.set("data.path", name, flag)


def _bfloat16(draft: Draft, home: str, flag: Flag, registry: Registry) -> None:
    """One flag, two settings: the type of the weights, and that of the computation."""
    draft.set("train.bf16", _value(flag), flag)
    if flag.name == "use_bfloat16" and _value(flag) is True:
        draft.set("model.dtype", "bfloat16", flag)


def _grouped(draft: Draft, home: str, flag: Flag, registry: Registry) -> None:
    """What transformers 5 calls a strategy was a flag before."""
    draft.set(home, "group_by_length" if _value(flag) is True else "random", flag)


def _trackers(draft: Draft, home: str, flag: Flag, registry: Registry) -> None:
    known = registry.names("tracker")
    wanted = [n for value in flag.values for n in value.split(",") if n not in ("", "none")]
    unknown = [name for name in wanted if name not in known]
    why = f"no tracker is installed that is called {', '.join(unknown)}" if unknown else ""
    methods = dict.fromkeys(["console", "jsonl", *(name for name in wanted if name in known)])
    draft.set("trackers", [{"method": name} for name in methods], flag, why)


_READERS: dict[str, Callable[[Draft, str, Flag, Registry], None]] = {
    "dataset_name": _dataset,
    "dataset": _dataset,
    "target_modules": _names,
    "lora_target_modules": _names,
    "modules_to_save": _names,
    "use_bfloat16": _bfloat16,
    "bf16": _bfloat16,
    "report_to": _trackers,
    "group_by_length": _grouped,
}
