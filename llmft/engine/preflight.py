"""Every fault of a job that can be found before a weight is loaded, in one list.

`validate`, `plan`, `run` and `--smoke` all ask here. Without the model it reads the first rows of
local files, imports no torch and contacts no host.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmft.api import Alignment, Dataset, PromptRow, RewardFunction, ScoredTaskConfig, Task
from llmft.api.errors import (
    CheckpointError,
    DataError,
    EnvironmentFault,
    Fault,
    LlmftError,
    PluginError,
    RecipeError,
    TrustError,
)
from llmft.api.evaluate_settings import EvaluateSettings
from llmft.data.stage_rows import check_rows, first_row
from llmft.data.usable_rows import at_source
from llmft.modeling import peft_folder
from llmft.modeling.stored_form import form_misfit
from llmft.recipes.checks import difference
from llmft.recipes.job import BoundStage, Job
from llmft.recipes.locating import key_in
from llmft.recipes.metrics import scores_answers
from llmft.recipes.other_models import other_models
from llmft.recipes.references import references, stage_references
from llmft.recipes.sources import data_blocks
from llmft.recipes.tree import KeyPath
from llmft.registry.return_checks import refusals_of, shown, violation
from llmft.runs import artifacts
from llmft.runs.upstream import load_options, upstream_folder
from llmft.system import machine, tf32, trust
from llmft.system.launcher import launch
from llmft.system.quiet import before_upstream
from llmft.system.startup import without_collecting

_BY_KIND: tuple[tuple[str, type[LlmftError]], ...] = (
    ("E1", DataError),
    ("E2", EnvironmentFault),
    ("E4", CheckpointError),
    ("E5", PluginError),
    ("E6", TrustError),
)


def refuse_faults(
    job: Job,
    base: Any,
    *,
    hub_rows: bool = True,
    runs_here: bool = False,
    processes: int | None = None,
) -> None:
    """Raise one error with every fault of a job; parameters as for `preflight`."""
    found = preflight(job, base, hub_rows=hub_rows, runs_here=runs_here, processes=processes)
    if found:
        raise error_of(found)


def error_of(faults: list[Fault]) -> LlmftError:
    """Return faults as one error, whose exit code is that of their kind, if they are of one."""
    kinds = {fault.code[:2] for fault in faults}
    for kind, error in _BY_KIND:
        if kinds == {kind}:
            return error.of(faults)
    return RecipeError.of(faults)


def preflight(
    job: Job,
    base: Any,
    *,
    hub_rows: bool = True,
    runs_here: bool = False,
    processes: int | None = None,
) -> list[Fault]:
    """Return the faults of a job, in the order of the recipe.

    base: the job's BaseModel, for what needs the model's config and modules; None: without torch
    and network. hub_rows: with the base, read the first rows of data sets on the hub too.
    runs_here: the job is about to run, so that what this machine lacks is a fault, too. processes:
    that it is to run in; default: those that were launched.
    """
    network = hub_rows and base is not None
    faults = [
        *_of_the_folder(job),
        *_of_other_runs(job),
        *_of_other_adapters(job),
        *_of_peft_folders(job, base),
        *_of_the_processes(job, processes or launch().count),
        *_of_code(job),
        *_of_rows(job, network=network),
        *_of_rewards(job, network=network),
    ]
    if base is not None:
        faults += _of_the_model(job, base)
    if runs_here:
        faults += _of_this_machine(job)

    def position(fault: Fault) -> tuple[bool, int, int]:
        place = fault.place
        return (place is None or not place.line, place.line if place else 0,
                place.column if place else 0)  # fmt: skip

    return sorted(faults, key=position)


def _of_the_folder(job: Job) -> Iterator[Fault]:
    """Yield a fault where no run folder can be made under output_dir."""
    parent = Path(job.recipe.output_dir)
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    at: KeyPath = ("output_dir",)
    if not parent.is_dir():
        what = f"'{parent}' is a file, so no run folder can be made there"
        yield job.fault("E203", at, what, "give another output_dir")
    elif not os.access(parent, os.W_OK | os.X_OK):
        what = f"'{parent}' cannot be written to"
        yield job.fault("E203", at, what, "give another output_dir, or change its permissions")


def _of_other_runs(job: Job) -> Iterator[Fault]:
    """Yield a fault for each stage of another run that is not there, or made another thing."""
    for reference in references(job.written):
        if not reference.is_of_another_run:
            continue
        bound = job.written_stages[reference.stage]
        try:
            stage = upstream_folder(bound.upstream[reference.target], Path())
            made = artifacts.result_of(stage)["produces"]
        except LlmftError as error:
            yield from placed(job, reference.path, error)
            continue
        if made != reference.produces:
            made, wanted = (word.replace("_", " ") for word in (made, reference.produces))
            what = f"'{reference.target}' made {made}; one that makes {wanted} is needed"
            yield job.fault("E033", reference.path, what, "name another stage of that run")


def _of_the_processes(job: Job, count: int) -> Iterator[Fault]:
    """Yield a fault for each stage whose rows cannot be dealt out evenly to so many processes."""
    for number, bound in enumerate(job.written_stages):
        train = bound.spec.train
        asked, size = train.train_batch_size, train.per_device_train_batch_size
        if asked and asked % (size * count):
            near = -(-asked // (size * count)) * size * count
            yield job.fault(
                "E023",
                ("stages", number, "train", "train_batch_size"),
                f"{asked} rows cannot be dealt out to {count} processes with"
                f" per_device_train_batch_size: {size}",
                f"write {near}, another per_device_train_batch_size, or launch another number",
            )


def _of_this_machine(job: Job) -> Iterator[Fault]:
    """Yield a fault for each stage that asks for what the device here does not have."""
    from llmft.modeling import flash_attention

    name = job.recipe.model.attn_implementation
    if name in flash_attention.MODULES and (lacks := flash_attention.missing(name)):
        yield job.fault("E220", ("model", "attn_implementation"), *lacks)
    for number, bound in enumerate(job.written_stages):
        if bound.spec.train.tf32 and (why := tf32.misfit()):
            yield job.fault(
                "E238",
                ("stages", number, "train", "tf32"),
                f"TF32 needs an NVIDIA GPU of the compute capability 8.0 or above, and {why}",
                "remove tf32, or run it on such a GPU",
            )
        if bound.spec.train.activation_offloading and not machine.on_gpu():
            yield job.fault(
                "E239",
                ("stages", number, "train", "activation_offloading"),
                "the layers' inputs are in the CPU's memory already: this machine computes on the"
                " CPU, and there is no other memory to put them in",
                "remove activation_offloading, or run it on a GPU",
            )


def _of_code(job: Job) -> Iterator[Fault]:
    """Yield a fault for each file of code or of a task that may not run, or is not there."""
    for number, bound in enumerate(job.written_stages):
        try:
            bound.reads()
            files = bound.code()
        except LlmftError as error:
            yield from placed(job, ("stages", number, bound.spec.work_kind), error)
            continue
        for key, path in files:
            try:
                if not trust.is_trusted(path):
                    raise trust.refusal(path)
            except LlmftError as error:
                yield from placed(job, ("stages", number, *key), error)


def _of_rows(job: Job, *, network: bool) -> Iterator[Fault]:
    """Yield a fault for each stage whose first rows cannot be read or used.

    network: read those of the hub too.
    """
    for number, bound in enumerate(job.written_stages):
        for key, dataset in _datasets(bound):
            if stage_references(dataset.config):
                continue  # rows that another stage has yet to make
            if not all(_may_run(path) for path in _files(dataset)):
                continue  # a fault already
            if not network and not dataset.is_local():
                continue
            try:
                with at_source(key):
                    check_rows(dataset, bound.spec)
            except LlmftError as error:
                yield from placed(job, key_of(job, number, error), error)


def _of_rewards(job: Job, *, network: bool) -> Iterator[Fault]:
    """Yield a fault for each reward function that cannot work in its settings, or on its rows."""
    for number, bound in enumerate(job.written_stages):
        columns = _columns(bound, network=network) if bound.rewards else None
        for key, function in bound.keyed_rewards:
            if not all(_may_run(path) for path in _files(function)):
                continue  # a fault already
            try:
                for inner, what, fix in refusals_of(function, columns):
                    yield job.fault("E041", ("stages", number, *key, *inner), what, fix)
            except LlmftError as error:
                yield from placed(job, ("stages", number, *key), error)


def _columns(bound: BoundStage, *, network: bool) -> set[str] | None:
    """Return what the rows of a stage's prompts give by name; None where none can be read yet."""
    dataset = bound.dataset
    if dataset is None or dataset.sources or stage_references(dataset.config):
        return None
    if not all(_may_run(path) for path in _files(dataset)):
        return None
    if not network and not dataset.is_local():
        return None
    try:
        row = first_row(dataset)
    except LlmftError:
        return None  # a fault already
    return set(row.columns or ()) if isinstance(row, PromptRow) else None


def _files(method: Dataset[Any] | RewardFunction[Any]) -> Iterator[str]:
    for paths in method.code().values():
        yield from [paths] if isinstance(paths, str) else paths


def _may_run(path: str) -> bool:
    try:
        return trust.is_trusted(path)
    except DataError:
        return False


def _datasets(bound: BoundStage) -> Iterator[tuple[KeyPath, Dataset[Any]]]:
    """Yield a stage's data set, or each of its sources, with the key of its block."""
    if bound.dataset is None or bound.spec.data is None:
        return
    sources = bound.dataset.sources or (bound.dataset,)
    for (key, _), dataset in zip(data_blocks(bound.spec.data), sources, strict=True):
        yield key, dataset


def key_of(job: Job, number: int, error: LlmftError) -> KeyPath:
    """Return the key of a data block that an error about its rows belongs to."""
    fault = error.faults[0]
    if fault.path.startswith("evaluate."):
        return ("stages", number, *key_in(fault.path))
    named = key_in(fault.path) if fault.path.startswith("data.") else ("data",)
    base: KeyPath = ("stages", number, *named)
    code = fault.code
    keys: tuple[str, ...] = ("path", "data_files", "split")
    if code in ("E101", "E102"):
        keys = ("columns", "method")
    elif code == "E109":
        keys = ("split", "path", "data_files")
    known = job.source.tree
    found = [(*base, key) for key in keys if (*base, key) in known.values]
    return found[0] if found else base


def placed(job: Job, path: KeyPath, error: LlmftError) -> list[Fault]:
    """Return an error's faults at a key of the recipe."""
    return [job.fault(fault.code, path, fault.what, fault.fix) for fault in error.faults]


@without_collecting()
def _of_the_model(job: Job, base: Any) -> list[Fault]:
    """Return the faults that show on the model's modules and sizes."""
    before_upstream()
    try:
        model = base.empty()
    except (EnvironmentFault, TrustError) as error:
        return [
            job.fault(f.code, key_in(f.path) if f.path else ("model", "path"), f.what, f.fix)
            for f in error.faults
        ]
    faults: list[Fault] = list(_of_other_models(job, base))
    for number, bound in enumerate(job.written_stages):
        if bound.start is not None and bound.adapter is None:
            continue  # of another run that cannot be read, which is a fault already
        faults += _of_a_stage(job, number, bound, base, model)
        if bound.spec.train.bf16 is True and base.source.dtype == "float16":
            what = "bf16 cannot compute in bfloat16 on weights of dtype float16, as the files have"
            key = ("stages", number, "train", "bf16")
            fix = "write model.dtype: bfloat16, or bf16: false"
            faults.append(job.fault("E040", key, what, fix))
    return faults


def _of_other_models(job: Job, base: Any) -> Iterator[Fault]:
    """Yield a fault for each other model that cannot be had, or reads ids otherwise."""
    for key, asked in other_models(job.written):
        path: KeyPath = (*key, "path")
        other = type(base)(asked.source(), ".".join(map(str, key)))
        try:
            other.empty()
            what, fix = _misfit(base, other, job.written.stages[int(key[1])].train.max_length)
        except (EnvironmentFault, TrustError) as error:
            yield from placed(job, path, error)
            continue
        if what:
            yield job.fault("E041", path, what, fix)
        if misfit := form_misfit(other.config, asked.quantization.options(), other.key):
            yield job.fault("E231", path, *misfit)


def _misfit(base: Any, other: Any, asked: int | None) -> tuple[str, str]:
    """Return why another model cannot read a base's rows, and what to do; '' where it can.

    asked: the recipe's `max_length`.
    """
    theirs = other.tokenizer.get_vocab()
    for word, number in base.tokenizer.get_vocab().items():
        if theirs.get(word) != number:
            found = "does not have it" if word not in theirs else f"has it as {theirs[word]}"
            return (
                f"it reads the ids of the trained model's tokenizer, where the token {word!r} is"
                f" {number}, and its own tokenizer {found}",
                "name a model of the same family, with the same vocabulary",
            )
    ids = max(base.tokenizer.get_vocab().values(), default=-1) + 1
    read, known = min(ids, base.vocabulary or ids), other.vocabulary
    if known is not None and read > known:
        return (
            f"it has an embedding of {known} tokens, and the trained model's tokenizer has {read}",
            "name a model whose embedding has a row for each token",
        )
    longest, room = asked or base.positions, other.positions
    if room is not None and (longest is None or longest > room):
        most = f"{longest} tokens" if longest else "any length"
        return (
            f"rows may have {most}, and it has {room} positions",
            f"write train.max_length: {room}, or less",
        )
    return "", ""


def _undivided(model: Any) -> str:
    from llmft.modeling.sharded_layers import misfit

    return misfit(model)


def _of_a_stage(job: Job, number: int, bound: BoundStage, base: Any, model: Any) -> Iterator[Fault]:
    stage, adapter, positions = bound.spec, bound.adapter, base.positions
    asked = stage.train.max_length
    virtual: Any = adapter.virtual_tokens() if adapter else 0
    if not isinstance(virtual, int):
        raise violation(adapter, f"'virtual_tokens' returns {shown(virtual)}, not a number")
    left = positions - virtual if positions else None
    yield from _without_room(job, number, bound, asked or left, left)
    if isinstance(bound.work, Task):
        try:
            for key, what, fix in refusals_of(bound.work):
                yield job.fault("E041", ("stages", number, "task", *key), what, fix)
        except LlmftError as error:  # it could not even be asked
            yield from placed(job, ("stages", number, "task"), error)
        return
    if asked and left is not None and asked > left:
        taken = f", {virtual} of them taken by virtual tokens" if virtual else ""
        yield job.fault(
            "E045",
            ("stages", number, "train", "max_length"),
            f"a row of {asked} tokens does not fit the model's {positions} positions{taken}",
            f"write at most {left}",
        )
    if stage.train.packs_apart and not _keeps_rows_apart(base, model):
        yield job.fault(
            "E041",
            ("stages", number, "train", "packing"),
            "this model's attention cannot keep packed rows apart",
            "set packing: false, or model.attn_implementation: auto",
        )
    if bound.spec.train.shard_base and (why := _undivided(model)):
        yield job.fault(
            "E233",
            ("stages", number, "train", "shard_base"),
            f"a '{base.config.model_type}' cannot be divided by its layers: {why}",
            "remove shard_base",
        )
    yield from _of_attention(job, number, bound, base, model)
    if isinstance(bound.work, Alignment):
        for key, what, fix in refusals_of(bound.work, model):
            yield job.fault("E041", ("stages", number, "alignment", *key), what, fix)
    if stage.adapter is None:
        return
    options = load_options(job.recipe, adapter)
    if misfit := form_misfit(base.config, options):
        yield job.fault("E231", ("model", "path"), *misfit)
    model.is_quantized = bool(options)  # as transformers marks it
    assert adapter is not None  # the stage has an adapter block
    refusals = list(refusals_of(adapter, model))
    for key, what, fix in refusals:
        yield job.fault("E047", ("stages", number, "adapter", *key), what, fix)
    if base.new_tokens and not (bound.spec.merges_start or adapter.trains_new_tokens(model)):
        yield job.fault(
            "E047",
            ("stages", number, "adapter", "method"),
            f"'{adapter.method}' does not train the rows of the embedding that the tokens of"
            " model.add_tokens have, so they would keep the numbers that they start with",
            "pick lora, dora, qlora or full",
        )
    if not refusals:
        yield from _of_its_start(job, number, bound, adapter, model)
        yield from _of_a_trial(job, number, adapter, model)


def _of_its_start(
    job: Job, number: int, bound: BoundStage, adapter: Any, model: Any
) -> Iterator[Fault]:
    """Yield in what an adapter that PEFT saved is not the one that the stage's block describes."""
    if (asked := bound.spec.peft_start) is None:
        return
    try:
        found = peft_folder.read(asked)
    except LlmftError:  # a fault already
        return
    for key, what, fix in refusals_of(
        adapter, model, found.settings, found.tensors, ask="check_peft"
    ):
        yield job.fault("E034", ("stages", number, "adapter", *key), what, fix)


def _of_peft_folders(job: Job, base: Any) -> Iterator[Fault]:
    """Yield a fault for each adapter from elsewhere that cannot be had, or has another base.

    base: as for `preflight`; without it nothing is asked of the hub.
    """
    for number, bound in enumerate(job.written_stages):
        asked = bound.spec.peft_start
        if asked is None or (base is None and not peft_folder.is_local(asked)):
            continue
        try:
            found = peft_folder.read(asked)
            if base is not None:
                peft_folder.base_remark(asked, found, base)
        except LlmftError as error:
            key: KeyPath = ("stages", number, "start_from")
            yield from placed(job, key, error)


def start_remarks(job: Job, base: Any) -> list[str]:
    """Return what a person should know of the bases of adapters from elsewhere."""
    asked = [b.spec.peft_start for b in job.written_stages if b.spec.peft_start is not None]
    told = [peft_folder.base_remark(one, peft_folder.read(one), base) for one in asked]
    return [remark for remark in told if remark]


def _of_a_trial(job: Job, number: int, adapter: Any, model: Any) -> Iterator[Fault]:
    """Yield a fault where an adapter fails on a small copy of the model."""
    from llmft.engine.adapter_trial import failure

    if why := failure(adapter, job.written.model, model.config):
        kind = model.config.model_type
        yield job.fault(
            "E047",
            ("stages", number, "adapter", "method"),
            f"'{adapter.method}' cannot be trained on a model of the type '{kind}': {why}",
            "pick another adapter, such as lora with target_modules: [q_proj, v_proj]",
        )


def _of_other_adapters(job: Job) -> Iterator[Fault]:
    """Yield a fault for each stage whose adapter block is not that of what it goes on training.

    Within one recipe this was found when it was read; here it may be a stage of another run.
    """
    for number, bound in enumerate(job.written_stages):
        yield from _of_a_merge(job, number, bound)
        start, stage = bound.continued, bound.spec
        if start is None or stage.adapter is None or start.stage is None:
            continue
        if start.stage.adapter is None or start.stage.adapter.config == stage.adapter:
            continue
        theirs = start.stage.adapter.config
        name = difference(stage.adapter, theirs)
        now, then = (shown(getattr(one, name, None)) for one in (stage.adapter, theirs))
        yield job.fault(
            "E034",
            ("stages", number, "adapter", name),
            f"'{name}' is {now} here, and {then} in '{start.target}', whose adapter stage"
            f" '{stage.name}' goes on training",
            "drop this adapter block, or drop start_from; or write start_from:"
            f" {{stage: '{start.target}', merge: true}}",
        )


def _of_a_merge(job: Job, number: int, bound: BoundStage) -> Iterator[Fault]:
    """Yield a fault where an adapter of another run cannot be merged into the base."""
    start = bound.start
    if not bound.spec.merges_start or start is None or start.run is None or start.stage is None:
        return
    theirs = start.stage.adapter
    if theirs is not None and not theirs.mergeable:
        yield job.fault(
            "E041",
            ("stages", number, "start_from", "merge"),
            f"the '{theirs.method}' adapter of '{start.target}' cannot be merged",
            "drop merge and the adapter block, or name a stage of an adapter such as lora",
        )


def _of_attention(
    job: Job, number: int, bound: BoundStage, base: Any, model: Any
) -> Iterator[Fault]:
    """Yield a fault where a package of attention would compute nothing of a stage's training."""
    from llmft.modeling import flash_attention

    name, adapter, train = base.source.attn_implementation, bound.adapter, bound.spec.train
    if name not in flash_attention.MODULES or adapter is None:
        return
    what = flash_attention.misfit(name, model.config)
    if not what and not (adapter.supports_packing and _keeps_rows_apart(base, model)):
        what = f"{name} computes padding-free passes, and those of '{bound.name}' are padded"
    if not what and base.source.dtype == "float32" and train.bf16 is False:
        what = f"{name} computes in 16 bits, and '{bound.name}' in float32"
    if what:
        key = ("model", "attn_implementation")
        yield job.fault("E221", key, what, "write auto" + _HALF * what.endswith("float32"))


_HALF = ", or model.dtype: bfloat16, or train.bf16: true in the stage"


def _keeps_rows_apart(base: Any, model: Any) -> bool:
    from llmft.modeling import attention
    from llmft.modeling.base_model import proven_levers

    source = base.source
    named = source.attn_implementation in attention.NAMES
    return named and proven_levers(source, model.config).padding_free


def _without_room(
    job: Job, number: int, bound: BoundStage, row: int | None, left: int | None
) -> Iterator[Fault]:
    """Yield a fault for each kind of answer that a stage samples and that no prompt fits before.

    row: tokens of a row at most. left: the model's positions beside an adapter's.
    """
    stage = bound.spec
    found: list[tuple[KeyPath, int, int | None]] = [
        ((stage.work_kind,), bound.work.max_new_tokens(), row)
    ]
    for where, asked in (("evaluate", stage.evaluate), ("task", stage.task)):
        if isinstance(asked, EvaluateSettings | ScoredTaskConfig) and scores_answers(asked):
            found.append(((where, "max_new_tokens"), asked.max_new_tokens, left))
    for key, tokens, limit in found:
        if tokens and limit is not None and tokens > limit - 2:
            yield job.fault(
                "E045",
                ("stages", number, *key),
                f"an answer of {tokens} tokens leaves no room for a prompt within {limit}",
                "write fewer" if limit == left else "write fewer, or raise train.max_length",
            )
