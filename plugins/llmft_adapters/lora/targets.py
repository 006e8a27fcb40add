"""Which of a model's layers LoRA adapts, and what of a recipe's choice fits no layer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, TypeVar

from llmft.api import Refusal
from llmft.toolkit import TimeUp, time_limit
from llmft_adapters.layer_choice import LayerChoice
from llmft_adapters.lora.config import LoraConfig
from llmft_adapters.lora.experts import expert_parameters, fused_misfits, is_left_out
from llmft_adapters.vocabulary import both_ends

V = TypeVar("V")
Choice = LayerChoice | LoraConfig
"""What chooses layers by `target_modules`; LoRA's can choose the weights of experts too."""
EVERY = "all-linear"
"""The word for every linear layer but the last, alone or among names."""
SECONDS = 2.0
"""How long a recipe's regex may take over the names of all layers."""


def linear_layers(model: Any) -> list[str]:
    """Return the names of the layers that LoRA can adapt, the output layer left out."""
    import torch
    from transformers.pytorch_utils import Conv1D

    output = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not output
    ]


def adapted_layers(model: Any, config: Choice) -> list[str]:
    """Return the full names of the layers that get an update."""
    layers, asked = linear_layers(model), config.target_modules
    chosen: set[str] = set()
    if takes_every(asked):
        modules = dict(model.named_modules())
        chosen = {name for name in layers if not is_left_out(model, name, modules[name])}
    if asked != EVERY:
        chosen |= chosen_by(layers, asked)
    found = [name for name in layers if name in chosen]
    found += _chosen_ends(_ends(model, config), asked)
    return _of_the_layers(_not_excluded(found, config), config)


def takes_every(asked: str | list[str]) -> bool:
    """Return whether a choice takes every linear layer but the last, and maybe others."""
    return asked == EVERY or (isinstance(asked, list) and EVERY in asked)


def adapted_ends(model: Any, config: Choice) -> list[str]:
    """Return the full names of the embedding and the output layer, where they get an update."""
    ends = _ends(model, config)
    return [name for name in adapted_layers(model, config) if name in ends]


def _ends(model: Any, config: Choice) -> dict[str, Any]:
    """Return the embedding and the output layer, by name, where a method could take them."""
    return dict(both_ends(model)) if isinstance(config, LoraConfig) else {}


def _chosen_ends(ends: Iterable[str], asked: str | list[str]) -> list[str]:
    """Return those of the ends that a regex matches, or a name of a list; globs mean neither.

    So '*' and '?_proj' stay what they are: layers of the stack.
    """
    if asked == EVERY:
        return []
    names = list(ends)
    if isinstance(asked, list):
        asked = [one for one in asked if not _is_glob(one)]
    return [name for name in names if name in chosen_by(names, asked)]


def adapted_experts(model: Any, config: LoraConfig) -> list[str]:
    """Return the full names of the fused experts' weights that get an update."""
    known = chosen = expert_parameters(model)
    asked = config.target_parameters or config.target_modules
    if isinstance(asked, list) and EVERY not in asked:
        chosen = [name for name in known if any(_means_expert(p, name) for p in asked)]
    elif not takes_every(asked):  # a regex is matched with layers only, as PEFT's
        chosen = []
    return _of_the_layers(_not_excluded(chosen, config), config)


def _means_expert(pattern: str, name: str) -> bool:
    return bool(_matching([name, name.rpartition(".")[0]], pattern))


def _not_excluded(chosen: list[str], config: Choice) -> list[str]:
    if config.exclude_modules is None:
        return chosen
    out = chosen_by(chosen, config.exclude_modules)
    return [name for name in chosen if name not in out]


def chosen_by(names: list[str], asked: str | list[str]) -> set[str]:
    """Return the names that a regex matches, or a name or glob of a list.

    Raises TimeUp where a regex takes longer than SECONDS.
    """
    if isinstance(asked, str):
        return _matched(asked, tuple(names))
    return {name for pattern in asked for name in _matching(names, pattern)}


@lru_cache(maxsize=64)
def _matched(regex: str, names: tuple[str, ...]) -> set[str]:
    pattern = re.compile(regex)
    with time_limit(SECONDS):
        return {name for name in names if pattern.fullmatch(name)}


def _of_the_layers(chosen: list[str], config: Choice) -> list[str]:
    if config.layers_to_transform is not None:
        wanted = set(config.layers_to_transform)
        chosen = [name for name in chosen if layer_number(name) in wanted]
    return chosen


def layer_number(name: str) -> int | None:
    """Return the number in a layer's name, or None for one outside the stack of layers."""
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else None


def targets_for_peft(model: Any, config: Choice) -> list[str]:
    """Return the choice as PEFT takes it: the ends of names where these say the same, else whole.

    'all-linear' is not handed on: PEFT would take routers along, and other layers as
    `layers_to_transform` does.
    """
    names = adapted_layers(model, config)
    ends = sorted({name.rpartition(".")[2] for name in names})
    meant = {name for name, _ in model.named_modules() for end in ends if _called([name], end)}
    return ends if meant == set(names) else names


def values_for_peft(model: Any, config: LoraConfig, patterns: Mapping[str, V]) -> dict[str, V]:
    """Return each adapted layer's full name with its value: that of the first pattern it matches.

    PEFT takes the keys of such a mapping for regexes; a full name is one that matches itself only.
    """
    adapted = adapted_layers(model, config) if patterns else []
    found: dict[str, V] = {}
    for pattern, value in patterns.items():
        for name in _matching(adapted, pattern):
            found.setdefault(name, value)
    return found


def whole_layers_for_peft(model: Any, config: Choice) -> list[str] | None:
    """Return the full names of the layers trained whole, once each.

    PEFT takes a short one for the end of any name: 'norm' would be 'input_layernorm' too.
    """
    if config.modules_to_save is None:
        return None
    names = [name for name, _ in model.named_modules()]
    found = (name for wanted in config.modules_to_save for name in _called(names, wanted))
    return list(dict.fromkeys(found))


def layer_misfits(model: Any, config: LayerChoice) -> Iterable[Refusal]:
    """Yield what of a choice of layers fits none of this model, or cannot be trained whole."""
    layers = linear_layers(model)
    slow = list(endless(model, config))
    yield from slow or _wrong_layers(model, config, layers, [], [])
    if not slow:
        yield from _wrong_whole_layers(model, adapted_layers(model, config), config)


def misfits(model: Any, config: LoraConfig) -> Iterable[Refusal]:
    """Yield what of LoRA's settings fits no layer of this model; `endless` has found nothing."""
    layers = linear_layers(model)
    experts = expert_parameters(model)
    fused = [*experts, *dict.fromkeys(name.rpartition(".")[0] for name in experts)]
    chosen = adapted_experts(model, config.model_copy(update={"exclude_modules": None}))
    key = "target_parameters" if config.target_parameters else "target_modules"
    yield from fused_misfits(adapted_experts(model, config), key, config)
    for number, pattern in enumerate(config.target_parameters or ()):
        if not _matching(fused, pattern):
            ends = ", ".join(sorted({name.rpartition(".")[2] for name in experts}))
            yield (
                ("target_parameters", number),
                f"'{pattern}' matches no stacked weight of experts in this model",
                f"its experts have {ends}" if ends else "leave it out: the model has no experts",
            )
    yield from _wrong_layers(model, config, layers, fused, chosen)
    adapted = adapted_layers(model, config)
    for key in ("rank_pattern", "alpha_pattern"):
        yield from _wrong_patterns(key, getattr(config, key), adapted)
    if config.start_in_the_base:
        yield from _too_high_ranks(model, adapted, config)
    if config.init_lora_weights == "orthogonal":
        yield from _odd_ranks(model, adapted, config)
    yield from _wrong_whole_layers(model, adapted, config)


def _wrong_layers(
    model: Any, config: Choice, layers: list[str], fused: list[str], experts: list[str]
) -> Iterable[Refusal]:
    """Yield what of the choice matches nothing. fused: names that mean experts' weights; experts:
    those of them that are chosen before any are excluded."""
    kinds = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
    ends = _ends(model, config)
    yield from _wrong_regexes([*ends, *layers], kinds, config)
    yield from _wrong_exclusions(model, config, experts)
    wrong_numbers = list(_wrong_numbers(layers, config))
    yield from wrong_numbers
    there = adapted_layers(model, config.model_copy(update={"exclude_modules": None}))
    patterns = config.target_modules if isinstance(config.target_modules, list) else []
    for number, pattern in enumerate(patterns):
        if pattern == EVERY:
            continue
        known = [*layers, *_chosen_ends(ends, [pattern])]
        if not _matching(known, pattern) and not _matching(fused, pattern):
            miss = _end_by_glob(ends, pattern) or _near_miss(model, pattern, kinds, fused)
            yield (("target_modules", number), *miss)
        elif not wrong_numbers and not _matching([*there, *fused], pattern):
            yield (
                ("target_modules", number),
                f"'{pattern}' matches nothing in the layers of layers_to_transform",
                "leave it out, or add its layers there",
            )


def endless(model: Any, config: Choice) -> Iterable[Refusal]:
    """Yield which regex takes too long to match."""
    layers = [*linear_layers(model), *_ends(model, config)]
    for key in ("target_modules", "exclude_modules"):
        asked = getattr(config, key)
        if not isinstance(asked, str):
            continue
        try:
            chosen_by(layers, asked)
        except TimeUp:
            what = f"the regex '{asked}' takes longer than {SECONDS:g} s to match"
            yield (key,), what, "write a simpler one, or a list of names such as [q_proj, v_proj]"


def _wrong_regexes(layers: list[str], kinds: str, config: Choice) -> Iterable[Refusal]:
    """Yield that a string in target_modules matches nothing."""
    asked = config.target_modules
    if not isinstance(asked, str) or asked == EVERY:
        return
    matched = chosen_by(layers, asked)
    if layers and not matched:
        yield (
            ("target_modules",),
            f"the regex '{asked}' matches no linear layer's whole name, such as '{layers[-1]}'",
            f"write a list of names or globs; this model has {kinds}",
        )
    elif matched and not _of_the_layers(sorted(matched), config):
        what = f"the regex '{asked}' matches nothing in the layers of layers_to_transform"
        yield ("target_modules",), what, "change one of them"


def _wrong_exclusions(model: Any, config: Choice, experts: list[str]) -> Iterable[Refusal]:
    """Yield what of exclude_modules excludes nothing, or that it leaves nothing."""
    asked = config.exclude_modules
    if asked is None:
        return
    whole = config.model_copy(update={"exclude_modules": None})
    chosen = [*adapted_layers(model, whole), *experts]
    parts: list[tuple[tuple[str | int, ...], str, str | list[str]]] = (
        [(("exclude_modules",), asked, asked)]
        if isinstance(asked, str)
        else [(("exclude_modules", n), one, [one]) for n, one in enumerate(asked)]
    )
    for key, said, part in parts:
        if chosen and not chosen_by(chosen, part):
            yield key, f"'{said}' is none of the layers that get an update", "leave it out"
    if chosen and not _not_excluded(chosen, config):
        what = "it excludes every layer that target_modules chooses"
        yield ("exclude_modules",), what, "exclude fewer layers"


def _end_by_glob(ends: Iterable[str], pattern: str) -> tuple[str, str] | None:
    """Return that a glob, which means layers of the stack, would match the first or last layer."""
    found = _matching(list(ends), pattern)
    if not found:
        return None
    what = f"'{pattern}' matches '{found[0]}' only, which is adapted where its name is written out"
    return what, f"write {found[0].rpartition('.')[2]}"


def _near_miss(model: Any, pattern: str, kinds: str, fused: list[str]) -> tuple[str, str]:
    """Return what is wrong with a name that no layer bears, and what may be meant."""
    output = model.get_output_embeddings()
    heads = [name for name, module in model.named_modules() if module is output]
    if output is not None and _matching(heads, pattern):
        tied = bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))
        if tied:
            what = f"'{pattern}' is one with the embedding, and an update would tear them apart"
            return what, "leave it out"
        what = f"'{pattern}' is the output layer, which gets no low-rank update"
        return what, f"train it whole: modules_to_save: [{heads[0].rpartition('.')[2]}]"
    if _is_regex(pattern):
        what = f"'{pattern}' is a regex, and names or globs are read here"
        way = "write it as a string, without the list, or globs such as '*_proj'"
        return what, f"{way}; this model has {kinds}"
    if fused and (pattern.rstrip("0123456789") == "w" or "expert" in pattern or "_proj" in pattern):
        ends = ", ".join(sorted({name.rpartition(".")[2] for name in fused}))
        what = f"'{pattern}' matches no layer: the experts of this model are fused"
        return what, f"write one of {ends}; its linear layers are {kinds}"
    what = f"'{pattern}' matches no linear layer of this model"
    return what, f"it has {kinds}; or write target_modules: all-linear"


def _is_regex(pattern: str) -> bool:
    return any(mark in pattern for mark in ("|", "^", "$", "\\", "(", ".*", "+"))


def _too_high_ranks(model: Any, adapted: list[str], config: LoraConfig) -> Iterable[Refusal]:
    ranks = values_for_peft(model, config, config.rank_pattern)
    for name in adapted:
        rank, most = ranks.get(name, config.r), min(model.get_submodule(name).weight.shape)
        if rank > most:
            how = config.start_in_the_base
            what = f"{how} uses directions of the weight, and '{name}' has {most}, not {rank}"
            yield ("init_lora_weights",), what, f"write a rank of at most {most} for it"
            return


def _odd_ranks(model: Any, adapted: list[str], config: LoraConfig) -> Iterable[Refusal]:
    ranks = values_for_peft(model, config, config.rank_pattern)
    odd = [name for name in adapted if ranks.get(name, config.r) % 2]
    if odd:
        rank = ranks.get(odd[0], config.r)
        what = f"orthogonal gives A and B half of the directions each, and '{odd[0]}' has {rank}"
        yield ("init_lora_weights",), what, "write an even rank for it"


def _wrong_patterns(key: str, patterns: Mapping[str, Any], adapted: list[str]) -> Iterable[Refusal]:
    kinds = ", ".join(sorted({name.rpartition(".")[2] for name in adapted}))
    taken: dict[str, str] = {}
    for pattern in patterns if adapted else ():
        found = _matching(adapted, pattern)
        if not found:
            what = f"'{pattern}' matches no layer that is adapted"
            way = f"write a name or a glob; the adapted layers are {kinds}"
            yield (key, pattern), what, way
        elif taken.keys() >= set(found):
            what = f"'{pattern}' changes nothing: '{taken[found[0]]}' above it has its layers"
            yield (key, pattern), what, "write it first, or leave it out"
        for name in found:
            taken.setdefault(name, pattern)


def _wrong_numbers(layers: list[str], config: Choice) -> Iterable[Refusal]:
    known = {number for name in layers if (number := layer_number(name)) is not None}
    for index, number in enumerate(config.layers_to_transform or ()):
        if number not in known:
            yield (
                ("layers_to_transform", index),
                f"this model has no layer {number}",
                f"its layers are 0 to {max(known, default=0)}",
            )


def _wrong_whole_layers(model: Any, adapted: list[str], config: Choice) -> Iterable[Refusal]:
    modules = dict(model.named_modules())
    tied = bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))
    both_ends = (model.get_input_embeddings(), model.get_output_embeddings())
    stored = linear_layers(model) if getattr(model, "is_quantized", False) else []
    for index, wanted in enumerate(config.modules_to_save or ()):
        key = ("modules_to_save", index)
        found = _called(modules, wanted)
        if not found:
            ends = sorted({name.rpartition(".")[2] for name in modules if name})
            names = ", ".join(n for n in ends if not n.isdigit())
            yield key, f"no layer of this model is called '{wanted}'", f"there are {names}"
        elif tied and any(modules[name] is end for name in found for end in both_ends):
            what = (
                f"'{wanted}' shares its weights with the embedding, and would be separated from it"
            )
            yield key, what, "leave it out"
        elif clash := _within(found, adapted):
            what = f"'{clash[0]}' is adapted already, and cannot be trained in full too"
            yield key, what, "leave it out here, or in target_modules"
        elif packed := _within(found, stored):
            what = f"'{packed[0]}' is stored in 4 or 8 bits, which cannot be trained"
            yield key, what, "leave it out here, or load the base without quantisation"
        elif not any(True for name in found for _ in modules[name].parameters()):
            yield key, f"'{wanted}' has no weights to train", "leave it out"


def _within(blocks: list[str], layers: list[str]) -> list[str]:
    """Return those of the layers that are one of the blocks, or a part of one."""
    return [name for name in layers for b in blocks if name == b or name.startswith(f"{b}.")]


def _called(names: Iterable[str], wanted: str) -> list[str]:
    """Return the names that are the wanted one, or end in it after a dot."""
    return [name for name in names if name == wanted or name.endswith(f".{wanted}")]


def _matching(layers: list[str], pattern: str) -> list[str]:
    """Return the layers whose name, or last part of it, is the pattern or matches it as a glob."""
    if not _is_glob(pattern):
        return _called(layers, pattern)
    return [
        name
        for name in layers
        if fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(".")[2], pattern)
    ]


def _is_glob(name: str) -> bool:
    return any(mark in name for mark in "*?[")
