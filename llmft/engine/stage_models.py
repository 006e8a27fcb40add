"""A stage's model, made when first asked for, and others on the same base weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

from llmft.api import Alignment, OtherModel
from llmft.engine.stage_log import StageLog
from llmft.modeling.base_model import BaseModel, refuse_not_finite
from llmft.modeling.levers import levers_of
from llmft.recipes.job import BoundStage, Job
from llmft.recipes.locating import about
from llmft.recipes.other_models import models_of
from llmft.registry.return_checks import violation
from llmft.runs.artifacts import ADAPTER
from llmft.runs.upstream import (
    load_options,
    merged,
    merged_stages,
    share_frozen,
    stage_model,
    start_adapter,
    twin,
    upstream_folder,
)
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
        self._others: dict[str, Any] = {}

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
        from llmft.modeling.precision import train_in_float32, without_masters
        from llmft.modeling.recompute import checkpoint_layers, to_host

        self.log.progress("load the model", 0, 1)
        seed_everything(self.seed)
        base = self._base_of(self.bound)
        if remark := levers_of(base).remark(base.config.model_type):
            self.log.note(remark)
        train = self.bound.spec.train
        if train.gradient_checkpointing:
            put = to_host if train.activation_offloading else None
            checkpoint_layers(base, train.gradient_checkpointing_kwargs.every_n_layers, put)
        self.bare = twin(base)
        seed_everything(self.seed)
        model = stage_model(self.bound, base, self.start_folder)
        work = self.bound.work
        if isinstance(work, Alignment):
            work.extend(model)
            if self.adapter.trains_in_float32():
                train_in_float32(model)
            elif remark := without_masters(model):
                self.log.note(remark)
            if not any(parameter.requires_grad for parameter in model.parameters()):
                what = "no parameter requires grad: there is nothing to train"
                raise violation(self.adapter, what)
        else:
            model = model.requires_grad_(False).eval()
        if self.shards:
            self._divide(model)
        elif self.bound.spec.train.shard_base:
            self.log.note("train.shard_base has nothing to divide: one process has the whole base")
        self.log.progress("load the model", 1, 1)
        return model

    @property
    def shards(self) -> bool:
        """Whether the base's layers are divided among the processes."""
        from llmft.system import distributed

        return self.bound.spec.train.shard_base and distributed.count() > 1

    def _divide(self, model: Any) -> Any:
        """Return a model on the device, with this process's share of its frozen layers."""
        from llmft.modeling.sharded_layers import shard

        trained = self.adapter is not None and self.adapter.trains_base
        shard(model, device(), trained=trained)
        return model

    def make_whole(self) -> None:
        """Give the first process all trained weights, to be saved, where they are divided.

        The model is of no use afterwards in any other way.
        """
        from llmft.modeling.sharded_layers import ATTRIBUTE

        if self.shards and self.adapter is not None and self.adapter.trains_base:
            getattr(self.model, ATTRIBUTE).make_whole()

    def _base_of(self, bound: BoundStage) -> Any:
        """Return a base of its own, frozen, on the device, with what a stage stands on merged."""
        return merged(self._loaded_base(), merged_stages(bound, self.run))

    def _loaded_base(self) -> Any:
        where = "cpu" if self.shards else device()  # a whole one may be too much for the device
        return _placed(self.base, self.load_options, where, varlen=self.varlen)

    def _shared_base(self, bound: BoundStage) -> Any:
        """Return what another model of a stage is attached to: this one's weights where it can.

        Weights that are trained, here or there, are no longer the base's: then it is loaded again,
        and only what stays frozen here is shared.
        """
        if self.shards:
            return self._base_of(bound)
        there = bound.model_adapter
        own = merged_stages(self.bound, self.run)
        if merged_stages(bound, self.run) != own or (there is not None and there.trains_base):
            return self._base_of(bound)
        if self.adapter is None or not self.adapter.trains_base:  # a task has no adapter
            return twin(self.bare)
        base = self._base_of(bound)
        share_frozen(base, self.bare)
        return base

    @property
    def start_folder(self) -> Path | None:
        """The folder of the adapter that this stage goes on with; None: it begins afresh."""
        return start_adapter(self.bound, self.run)

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.base.tokenizer

    @property
    def shares_prompts(self) -> bool:
        """Whether `label_nll` may compute a prompt once for two answers."""
        return bool(self.adapter.supports_shared_prompt)

    @contextmanager
    def reference(self) -> Iterator[Any]:
        """Return a context in which the model, not yet trained, answers as the reference."""
        model = self.model
        untrained = self.bound.goes_on or self.adapter.trains_base
        off = nullcontext() if untrained else self.adapter.disabled(model)
        with off, self.precision():
            yield self.model

    @property
    def starts_as_reference(self) -> bool:
        """Whether the model, not yet trained, must answer as the reference does."""
        return self.bound.goes_on or bool(self.adapter.starts_as_base())

    def precision(self) -> AbstractContextManager[Any]:
        """Return a context in which the model computes as in a training step."""
        import torch

        bf16, kept = self.bound.spec.train.under_autocast, not self.shards
        where = torch.device(device()).type
        return torch.autocast(where, torch.bfloat16, enabled=bf16, cache_enabled=kept)

    def load_stage(self, name: str) -> Any:
        """Return a frozen model of an earlier stage on this one's base weights."""
        _ = self.model
        upstream = self.bound.upstream[name]
        folder = upstream_folder(upstream, self.run)
        if upstream.stage is None:
            raise upstream.error or KeyError(name)
        saved = folder / ADAPTER
        base = self._shared_base(upstream.stage)
        made = stage_model(upstream.stage, base, saved, whole=True)
        return self._divide(made) if self.shards else made

    def other_model(self, asked: OtherModel) -> Any:
        """Return a frozen model with a base of its own, which a setting names; loaded once."""
        name = asked.model_dump_json()
        if name not in self._others:
            self._others[name] = self._loaded_other(asked).requires_grad_(False).eval()
        return self._others[name]

    def _loaded_other(self, asked: OtherModel) -> Any:
        _ = self.model  # what is trained comes first, whatever memory is left
        self.log.progress("load the other model", 0, 1)
        options = asked.quantization.options()
        loaded = _placed(self._other_base(asked), options, device(), varlen=True)
        self.log.progress("load the other model", 1, 1)
        if ends := self._ends_only_there(loaded):
            self.log.note(
                f"'{asked.path}' ends its answers at {ends} too, where the trained model's do not"
                " stop: name in model.stop what is to end them"
            )
        return loaded

    def _ends_only_there(self, other: Any) -> str:
        """Return the tokens at which another model stops and the trained one does not; or ''."""
        from llmft.modeling.decoding import stop_ids

        both = [set(stop_ids(one, self.tokenizer)) for one in (self.model, other)]
        ids = sorted(both[1] - both[0])
        return ", ".join(f"'{self.tokenizer.convert_ids_to_tokens(number)}'" for number in ids)

    def _other_base(self, asked: OtherModel) -> BaseModel:
        key = next(key for key, one in models_of(self.bound.spec) if one == asked)
        place = ("stages", self.job.index_of(self.bound.name), *key)
        return BaseModel(asked.source(), ".".join(map(str, place)))

    @property
    def _base_is_kept(self) -> bool:
        """Whether the base's own weights are still those of this model's base."""
        trained = self.adapter is not None and self.adapter.trains_base
        return not trained and not self.bound.stands_on

    def base_model(self) -> Any:
        """Return the base model alone, frozen, on the same weights where they are not trained."""
        _ = self.model
        kept = self._base_is_kept and not self.shards
        base = twin(self.bare) if kept else self._loaded_base()
        base = base.requires_grad_(False).eval()
        return self._divide(base) if self.shards else base

    def reference_model(self) -> Any:
        """Return a frozen model that answers as the stage's start, on the same base weights.

        Where these are trained, it has a copy of them.
        """
        _ = self.model
        base = self._shared_base(self.bound)
        if (folder := self.start_folder) is not None:
            base = stage_model(self.bound, base, folder)
        base = base.requires_grad_(False).eval()
        return self._divide(base) if self.shards else base


def _placed(base: BaseModel, options: Mapping[str, Any], where: str, *, varlen: bool) -> Any:
    """Return a base model, loaded and frozen, on a device; see `BaseModel.load`."""
    with about(f"{base.key}.path"):
        model = base.load(options, varlen=varlen, on_cpu=where == "cpu")
        model = model.to(where) if not options else model
        refuse_not_finite(model, base.source, base.key)
    return model
