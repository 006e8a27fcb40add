"""Whether a plan fits into a memory, and what to change, in order, until it does."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmft.api import Alignment
from llmft.api.errors import DataError, RecipeError
from llmft.api.model_settings import Quantization
from llmft.api.train_settings import GradientCheckpointingKwargs
from llmft.planning.planner import RecipePlan, StagePlan, plan_stage
from llmft.planning.processes import Processes
from llmft.recipes.job import BoundStage, Job
from llmft.recipes.recipe import Recipe, Stage
from llmft.runs.upstream import load_options

GIB = 2**30
CUDA_CONTEXT = 600 * 2**20
"""What a process takes of a GPU before its first tensor: kernels and library workspaces."""
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(GB|GIB|G|MB|MIB|M)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Memory:
    """A memory to fit into. reserved: what is taken of it before a tensor is made.

    for_nccl: what is taken beside that, where several processes train together.
    """

    name: str
    total: int
    reserved: int
    in_ram: bool
    for_nccl: int = 0

    @property
    def is_shared(self) -> bool:
        """Whether other programs hold some of a GPU's memory."""
        return not self.in_ram and self.reserved > CUDA_CONTEXT

    def shared_by(self, processes: Processes) -> Memory:
        """Return the same, less what each of several processes takes to talk to the others."""
        return replace(self, for_nccl=processes.for_nccl)

    @property
    def room(self) -> int:
        """Bytes for tensors."""
        return self.total - self.reserved - self.for_nccl


@dataclass(frozen=True, slots=True)
class Change:
    """A setting to change in a stage, and the peak with it and all changes before it."""

    stage: str
    setting: str
    peak: int
    fits: bool


def named_memory(text: str, name: str = "") -> Memory:
    """Return the GPU that `--gpu` names by its size, such as 24GB (of 2**30 bytes, as on its box).

    name: what it is called; default: by its size.
    Raises RecipeError where that is no size.
    """
    found = _SIZE.fullmatch(text.strip())
    if not found or not float(found[1]):
        raise RecipeError("E090", f"--gpu '{text}' is not a memory size", fix="write --gpu 24GB")
    unit = 2**20 if (found[2] or "G").upper().startswith("M") else GIB
    called = name or f"a GPU of {text.strip()}"
    memory = Memory(called, int(float(found[1]) * unit), CUDA_CONTEXT, False)
    if memory.room <= 0:
        what = f"--gpu '{text}' is less than a GPU's own context takes ({CUDA_CONTEXT >> 20} MiB)"
        raise RecipeError("E090", what, fix="write --gpu 24GB")
    return memory


def found_memory() -> Memory:
    """Return the memory that a run would use here: the first GPU's, or the machine's own."""
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        # What other programs hold is not to be had, and this one's context is there by now.
        taken = max(CUDA_CONTEXT, total - free)
        return Memory(torch.cuda.get_device_name(), total, taken, False)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        path = Path(limit)
        if path.is_file() and (text := path.read_text().strip()).isdecimal():
            total = min(total, int(text))
    return Memory("this machine's memory", total, _resident(), True)


def _resident() -> int:
    """Return what Python and the libraries take: this process has them too, and no weights."""
    import resource
    import sys

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used * (1 if sys.platform == "darwin" else 1024)


def changes(plan: RecipePlan, memory: Memory) -> list[Change]:
    """Return what to change in the first stage that does not fit, until it does; [] if all fit.

    In the order of what they cost: smaller batches with accumulation, which change nothing;
    checkpointing, layers that several processes divide and copies of the layers' inputs, which take
    time; 4 bits, which take precision; shorter rows, which lose text.
    """
    tight = next((stage for stage in plan.stages if stage.peak.total > memory.room), None)
    if tight is None:
        return []
    job, base, stage = plan.job, plan.base, plan.recipe.stage(tight.name)
    recipe = plan.recipe
    made: list[Change] = []
    for said, change in _ideas(job, stage, tight, memory, plan.processes):
        other, changed = change(recipe, stage)
        bound = job.with_stage(other, changed)
        try:
            tried = plan_stage(
                bound, bound.stage(stage.name), base, in_ram=memory.in_ram, processes=plan.processes
            )
        except DataError:  # rows so short that no answer is left
            continue
        peak = tried.peak.total
        if peak >= (made[-1].peak if made else tight.peak.total):
            continue
        recipe, stage = other, changed
        fits = peak <= memory.room
        made.append(Change(stage.name, said, peak, fits))
        if fits:
            break
    return made


Edit = Callable[[Recipe, Stage], tuple[Recipe, Stage]]


def _ideas(
    job: Job, stage: Stage, plan: StagePlan, memory: Memory, processes: Processes
) -> Iterator[tuple[str, Edit]]:
    adapter = job.stage(stage.name).model_adapter
    assert adapter is not None  # a task on the base takes no memory to train
    train = stage.train
    size, steps = train.per_device_train_batch_size, train.accumulation(processes.count)
    whole = size * steps
    # What does not shrink with the batch is about what is there after loading.
    fixed, moving = plan.peaks[0].total, plan.peak.total - plan.peaks[0].total
    sizes = [size >> n for n in range(1, size.bit_length())]
    if tokens := train.per_device_train_tokens:
        counts, sizes = plan.counts, []
        longest = counts.longest if counts else 1
        halves = [n for n in (tokens >> n for n in range(1, tokens.bit_length())) if n >= longest]
        # A step of fewer tokens does not fill its passes.
        full = min(tokens, counts.tokens / counts.items * whole) if counts else tokens
        fitting = [n for n in halves if fixed + moving * n / full <= memory.room][:1]
        for fewer in dict.fromkeys([*fitting, *halves[-1:]]):
            said = f"train.per_device_train_tokens: {fewer}"
            yield said, _train(per_device_train_tokens=fewer)
    likely = [n for n in sizes if fixed + moving * n / size <= memory.room][:1]
    for size in dict.fromkeys([*likely, *sizes[-1:]]):
        if train.train_batch_size:  # the accumulation follows from it
            if not whole % size:
                said = f"train.per_device_train_batch_size: {size}"
                yield said, _train(per_device_train_batch_size=size)
            continue
        steps = -(-whole // size)
        yield (
            f"train.per_device_train_batch_size: {size} with gradient_accumulation_steps: {steps}",
            _train(per_device_train_batch_size=size, gradient_accumulation_steps=steps),
        )
    if train.per_device_eval_batch_size > 1 and stage.evaluate is not None:
        yield "train.per_device_eval_batch_size: 1", _train(per_device_eval_batch_size=1)
    if adapter.supports_gradient_checkpointing and not train.gradient_checkpointing:
        yield "train.gradient_checkpointing: true", _train(gradient_checkpointing=True)
    if train.gradient_checkpointing_kwargs.every_n_layers > 1:
        each = {"gradient_checkpointing_kwargs": GradientCheckpointingKwargs()}
        yield "train.gradient_checkpointing_kwargs.every_n_layers: 1", _train(**each)
    if processes.several and not train.shard_base and _divides(job, job.stage(stage.name)):
        yield "train.shard_base: true", _train(shard_base=True)
    if adapter.supports_gradient_checkpointing and not memory.in_ram:
        both = {"gradient_checkpointing": True, "activation_offloading": True}
        yield "train.activation_offloading: true (with gradient_checkpointing)", _train(**both)
    if adapter.supports_quantization and not plan.quantization:
        yield "model.quantization.load_in_4bit: true", _in_4_bits
    length = plan.counts.longest if plan.counts else train.max_length or 0
    while length > 128:
        length //= 2
        yield f"train.max_length: {length}", _train(max_length=length, max_dropped=1.0)


def _divides(job: Job, bound: BoundStage) -> bool:
    if not isinstance(bound.work, Alignment) or not bound.work.supports_shard_base:
        return False
    adapter = bound.model_adapter
    trains_base = adapter is not None and adapter.trains_base
    if trains_base and any(one.gives_weights for one in bound.callbacks):
        return False  # an average is of weights that one process has
    return not load_options(job.recipe, adapter).get("load_in_8bit")


def _train(**settings: Any) -> Edit:
    def change(recipe: Recipe, stage: Stage) -> tuple[Recipe, Stage]:
        return recipe, stage.model_copy(update={"train": stage.train.model_copy(update=settings)})

    return change


def _in_4_bits(recipe: Recipe, stage: Stage) -> tuple[Recipe, Stage]:
    stored = Quantization(load_in_4bit=True, bnb_4bit_use_double_quant=True)
    model = recipe.model.model_copy(update={"quantization": stored})
    return recipe.model_copy(update={"model": model}), stage
