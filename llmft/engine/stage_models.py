"""A stage's model, made when first asked for, and others on the same base weights."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

from llmft.api import Alignment
from llmft.engine.stage_log import StageLog
from llmft.modeling.base_model import BaseModel
from llmft.recipes.job import BoundStage, Job
from llmft.registry.return_checks import violation
from llmft.runs.upstream import load_options, stage_model, twin, upstream_folder
from llmft.system.machine import device, seed_everything
from llmft.system.startup import without_collecting


class StageModels:
    """The `models` of a StageContext. run: the run folder, which has the earlier stages."""

    def __init__(
        self, job: Job, bound: BoundStage, base: BaseModel, run: Path, log: StageLog
    ) -> None:
        self.job, self.bound, self.base, self.run, self.log = job, bound, base, run, log
        # An Adapter; None for a task on the base.
        self.adapter: Any = bound.model_adapter
        self.seed = job.recipe.seed

    @property
    def load_options(self) -> dict[str, Any]:
        """How the base is quantised, in BitsAndBytesConfig's names; empty where it is not."""
        return load_options(self.job.recipe, self.adapter)

    @property
    def varlen(self) -> bool:
        """Whether batches may be padding-free, as far as the adapter goes."""
        return self.adapter is None or bool(self.adapter.supports_packing)

    @cached_property
    @without_collecting()
    def model(self) -> Any:
        """The base model with the stage's adapter attached, on the device, ready to train."""
        self.log.progress("load the model", 0, 1)
        seed_everything(self.seed)
        base = self.base.load(self.load_options, varlen=self.varlen)
        base = base.to(device()) if not self.load_options else base
        if self.bound.spec.train.gradient_checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
        self.bare = twin(base)
        seed_everything(self.seed)
        model = stage_model(self.bound, base, self.start_folder)
        work = self.bound.work
        if isinstance(work, Alignment):
            work.extend(model)
            if not any(parameter.requires_grad for parameter in model.parameters()):
                what = "no parameter requires grad: there is nothing to train"
                raise violation(self.adapter, what)
        else:
            model = model.requires_grad_(False).eval()
        self.log.progress("load the model", 1, 1)
        return model

    @property
    def start_folder(self) -> Path | None:
        """The folder of the stage whose adapter this one goes on with; None: it begins afresh."""
        start = self.bound.start
        return upstream_folder(start, self.run) if start else None

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.base.tokenizer

    @property
    def shares_prompts(self) -> bool:
        """Whether `label_nll` may compute a prompt once for two answers."""
        return bool(self.adapter.supports_shared_prompt)

    def reference(self) -> AbstractContextManager[Any]:
        """Return a context in which the model, not yet trained, answers as the reference."""
        start: AbstractContextManager[Any] = nullcontext()
        return start if self.bound.start else self.adapter.disabled(self.model)

    def load_stage(self, name: str) -> Any:
        """Return a frozen model of an earlier stage on this one's base weights."""
        _ = self.model
        upstream = self.bound.upstream[name]
        folder = upstream_folder(upstream, self.run)
        if upstream.stage is None:
            raise upstream.error or KeyError(name)
        return stage_model(upstream.stage, twin(self.bare), folder, whole=True)

    def reference_model(self) -> Any:
        """Return a frozen model, on the same base weights, that answers as the stage's start."""
        _ = self.model
        base = twin(self.bare)
        if (folder := self.start_folder) is not None:
            base = stage_model(self.bound, base, folder)
        return base.requires_grad_(False).eval()
