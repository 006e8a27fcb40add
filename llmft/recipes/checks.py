"""Checks across the blocks of a recipe, from what the methods' classes declare."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from llmft.recipes.asking import asked, clash
from llmft.recipes.methods import Blocks
from llmft.recipes.references import adapter_stage, check_references, start_of
from llmft.recipes.rounds import check_repeat
from llmft.recipes.training_methods import check_callbacks, check_training
from llmft.recipes.tree import KeyPath, visible
from llmft.recipes.work import check_rows, check_work
from llmft.system.nearest import did_you_mean

if TYPE_CHECKING:
    from llmft.recipes.recipe import Recipe, Stage

PEFT_FIX = "write peft:FOLDER, peft:ORG/NAME or peft:ORG/NAME@REVISION"
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])", re.IGNORECASE)  # on Windows


def check_recipe(recipe: Recipe, blocks: Blocks) -> None:
    """Note a fault for everything in a recipe that cannot work together."""
    _check_folder(recipe, blocks)
    _check_plugins(recipe, blocks)
    check_references(recipe, blocks)
    check_repeat(recipe, blocks)
    for number, stage in enumerate(recipe.stages):
        base: KeyPath = ("stages", number)
        check_work(stage, base, blocks)
        _check_start(recipe, number, stage, blocks)
        _check_adapter(recipe, number, stage, blocks)
        check_rows(base, stage, blocks)
        check_training(base, stage, blocks)
        check_callbacks(base, stage, blocks)
        _check_precision(recipe, base, stage, blocks)


def _check_folder(recipe: Recipe, blocks: Blocks) -> None:
    """The run folder is <output_dir>/<name>/...: neither part may lead elsewhere."""
    parts = re.split(r"[/\\]", recipe.output_dir)
    fix = "write a folder such as runs"
    if ".." in parts:
        clash(blocks, "E046", [("output_dir",)], "output_dir must not contain '..'", fix)
    elif recipe.output_dir.startswith("~"):
        what = "'~' is not expanded here"
        clash(blocks, "E046", [("output_dir",)], what, "write the folder out")
    elif any(len(part.encode("utf-8", "replace")) > 255 for part in parts):
        clash(blocks, "E046", [("output_dir",)], "a folder's name has more than 255 bytes", fix)
    elif re.search(r"[\x00-\x1f\x7f]", recipe.output_dir):
        clash(blocks, "E046", [("output_dir",)], "output_dir contains a control character", fix)
    names: list[tuple[KeyPath, str]] = [(("name",), recipe.name)]
    names += [(("stages", n, "name"), stage.name) for n, stage in enumerate(recipe.stages)]
    for path, name in names:
        if _RESERVED.fullmatch(name):
            what = f"'{name}' is reserved on Windows, and becomes a folder's name"
            clash(blocks, "E046", [path], what, "use another name")


def _check_plugins(recipe: Recipe, blocks: Blocks) -> None:
    known = blocks.registry.names("plugin") if recipe.plugins else []
    for index, name in enumerate(recipe.plugins):
        if name not in known:
            what = f"no cross-cutting plugin is called '{visible(name)[:80]}'" \
                f"; installed: {', '.join(known) or 'none'}"  # fmt: skip
            fix = did_you_mean(name, known) or "`llmft list-plugins` shows what is installed"
            clash(blocks, "E024", [("plugins", index)], what, fix)


def _check_start(recipe: Recipe, number: int, stage: Stage, blocks: Blocks) -> None:
    """A stage brings an adapter or goes on with an earlier one, and the two may not differ."""
    base: KeyPath = ("stages", number)
    if stage.peft_start is not None:
        _check_peft_start(base, stage, blocks)
        return
    if stage.merges_start:
        _check_merge(recipe, number, stage, blocks)
        return
    if stage.task is not None:
        return
    if stage.adapter is None and stage.start_from is None:
        if not blocks.tree.touches_broken([(*base, "adapter"), (*base, "start_from")]):
            what = f"stage '{stage.name}' has neither an adapter nor start_from"
            fix = "add an adapter block, or name an earlier stage in start_from"
            blocks.tree.report("E034", (*base, "adapter"), what, fix)
        return
    earlier = start_of(recipe, number)
    if stage.adapter is None or earlier is None:
        return
    found = adapter_stage(recipe, earlier)
    if found is None or found[1].adapter == stage.adapter:
        return
    other, other_stage = found
    differing = difference(stage.adapter, other_stage.adapter)
    paths: list[KeyPath] = [(*base, "adapter", differing), ("stages", other, "adapter", differing)]
    asks: list[KeyPath] = [
        (*base, "adapter"), ("stages", other, "adapter"), (*base, "start_from", "merge"),
    ]  # fmt: skip
    if not blocks.tree.touches_broken(asks):
        what = (
            f"'{differing}' is not what stage '{other_stage.name}' has,"
            f" whose adapter stage '{stage.name}' continues to train"
        )
        fix = (
            "remove this adapter block, or start_from; or write start_from:"
            f" {{stage: {stage.start}, merge: true}}, and it stands on what that stage made"
        )
        blocks.tree.report_together("E034", paths, what, fix)


def _check_peft_start(base: KeyPath, stage: Stage, blocks: Blocks) -> None:
    """An adapter from elsewhere needs a stage that trains it, and a block that describes it."""
    key: KeyPath = (*base, "start_from")
    if not (stage.peft_start or "").strip():
        blocks.tree.report("E035", key, "no folder or hub id follows 'peft:'", PEFT_FIX)
    elif stage.merges_start:
        what = "an adapter that PEFT saved cannot be merged here"
        fix = "merge it with PEFT's merge_and_unload, and give what it saves as model.path"
        clash(blocks, "E034", [(*key, "merge")], what, fix)
    elif stage.task is not None:
        what = "a task trains nothing, and takes the adapter of a stage"
        fix = "let a stage that trains start from it, and name that stage here"
        clash(blocks, "E034", [key, (*base, "task")], what, fix)
    elif stage.adapter is None and not blocks.tree.touches_broken([(*base, "adapter"), key]):
        what = f"stage '{stage.name}' has no adapter block, which describes what 'peft:' names"
        fix = (
            "add one such as {method: lora, r: 8}; `llmft validate --model` says what it has to be"
        )
        blocks.tree.report("E034", key, what, fix)


def _check_merge(recipe: Recipe, number: int, stage: Stage, blocks: Blocks) -> None:
    """A merge needs an adapter that can be merged, a base that can hold it, and a new adapter."""
    base: KeyPath = ("stages", number)
    merge: KeyPath = (*base, "start_from", "merge")
    if stage.task is not None:
        what = "a task trains no adapter that would stand on what is merged"
        clash(blocks, "E034", [merge, (*base, "task")], what, f"write start_from: {stage.start}")
        return
    if stage.adapter is None:
        if not blocks.tree.is_broken((*base, "adapter")):
            what = "nothing stands on what is merged: the stage has no adapter block"
            fix = f"add an adapter block, or write start_from: {stage.start}"
            blocks.tree.report("E034", merge, what, fix)
        return
    earlier = start_of(recipe, number)
    found = adapter_stage(recipe, earlier) if earlier is not None else None
    if found is not None:
        method: KeyPath = ("stages", found[0], "adapter", "method")
        cls = blocks.classes.get(method[:-1])
        if cls is not None and found[1].adapter is not None and not cls.mergeable:
            name = visible(found[1].adapter.method)[:80]
            what = f"the '{name}' adapter cannot be merged"
            fix = "drop merge and the adapter block, or use an adapter such as lora there"
            clash(blocks, "E041", [merge, method], what, fix)
    if bits := recipe.model.quantization.bits:
        what = f"nothing can be merged into weights of {bits} bits: rounding would lose it"
        width: KeyPath = ("model", "quantization", f"load_in_{bits}bit")
        clash(blocks, "E041", [merge, width], what, f"write load_in_{bits}bit: false")
    own: KeyPath = (*base, "adapter")
    cls = blocks.classes.get(own)
    options = asked(blocks, own, lambda: dict(cls(stage.adapter).load_options())) if cls else {}
    if options and (options.get("load_in_4bit") or options.get("load_in_8bit")):
        name = visible(stage.adapter.method)[:80]
        what = f"the '{name}' adapter quantises the base, and nothing can be merged into that"
        clash(blocks, "E041", [merge, (*own, "method")], what, "use lora there")


def difference(one: Any, other: Any) -> str:
    """Return the name of the first setting in which two blocks differ; 'method' for two kinds."""
    if type(one) is not type(other):
        return "method"
    fields: dict[str, Any] = type(one).model_fields
    return next(n for n in fields if getattr(one, n) != getattr(other, n))


def _check_adapter(recipe: Recipe, number: int, stage: Stage, blocks: Blocks) -> None:
    """What the adapter's class says it cannot do may not be asked of it."""
    base: KeyPath = ("stages", number)
    found = adapter_stage(recipe, number)
    if found is None:
        return
    method: KeyPath = ("stages", found[0], "adapter", "method")
    cls = blocks.classes.get(method[:-1])
    if cls is None or found[1].adapter is None:
        return
    name = visible(found[1].adapter.method)[:80]
    train, drop = (*base, "train"), "or choose another adapter"
    if stage.train.gradient_checkpointing and not cls.supports_gradient_checkpointing:
        what = f"the '{name}' adapter cannot work with gradient_checkpointing"
        paths: list[KeyPath] = [(*train, "gradient_checkpointing"), method]
        clash(blocks, "E041", paths, what, f"write gradient_checkpointing: false, {drop}")
    if stage.train.packs_apart and not cls.supports_packing:
        what = f"the '{name}' adapter cannot work with packing"
        clash(blocks, "E041", [(*train, "packing"), method], what, f"write packing: false, {drop}")
    bits = recipe.model.quantization.bits
    if bits and not cls.supports_quantization:
        what = f"the '{name}' adapter cannot be attached to a quantised base"
        width: KeyPath = ("model", "quantization", f"load_in_{bits}bit")
        clash(blocks, "E041", [width, method], what, f"write load_in_{bits}bit: false, {drop}")
    options = asked(blocks, method[:-1], lambda: dict(cls(found[1].adapter).load_options()))
    wanted = recipe.model.quantization.model_dump() if bits else {}
    for key, value in (options or {}).items():
        if wanted and wanted.get(key) != value:
            what = f"the '{name}' adapter quantises the base itself, with {key}: {value}"
            fix = f"remove model.quantization, or write {key}: {str(value).lower()} there too"
            clash(blocks, "E041", [("model", "quantization", key), method], what, fix)
    for number, plugin in enumerate(stage.plugins if stage.train.shard_base else ()):
        own = blocks.classes.get((*base, "plugins", number))
        if own is not None and own.gives_weights and cls.trains_base:
            what = f"'{visible(plugin.method)[:80]}' keeps weights that a process has a share of"
            paths = [(*train, "shard_base"), (*base, "plugins", number)]
            clash(blocks, "E041", paths, what, "drop it, or shard_base")
    if stage.train.shard_base and (bits == 8 or (options and options.get("load_in_8bit"))):
        what = "shard_base cannot divide a base in 8 bits, whose scales bitsandbytes moves about"
        paths = [(*train, "shard_base"), ("model", "quantization", "load_in_8bit")]
        clash(blocks, "E041", paths, what, "write load_in_4bit: true, or drop shard_base")
    if bits or (options and (options.get("load_in_4bit") or options.get("load_in_8bit"))):
        where = ("model", "quantization", f"load_in_{bits}bit") if bits else method
        _need_bitsandbytes(blocks, where, "a quantised base")


def _need_bitsandbytes(blocks: Blocks, path: KeyPath, what: str) -> None:
    # Looked for, not imported: importing it takes seconds and needs torch.
    if find_spec("bitsandbytes") is None:
        what = f"{what} needs the package bitsandbytes, which is not installed"
        clash(blocks, "E206", [path], what, "pip install bitsandbytes")


def _check_precision(recipe: Recipe, base: KeyPath, stage: Stage, blocks: Blocks) -> None:
    if stage.train.bf16 is True and recipe.model.dtype == "float16":
        what = "bf16 cannot compute in bfloat16 on weights of dtype float16"
        paths: list[KeyPath] = [(*base, "train", "bf16"), ("model", "dtype")]
        clash(blocks, "E040", paths, what, "write dtype: bfloat16, or bf16: false")
