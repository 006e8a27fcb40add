"""A planned stage's models, which have no numbers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import torch

from llmft.api import Alignment, OtherModel
from llmft.engine.stage_models import StageModels
from llmft.modeling.counting import count_parameters
from llmft.modeling.precision import train_in_float32, without_masters
from llmft.modeling.recompute import checkpoint_layers
from llmft.modeling.stored_dtype import stored_dtype
from llmft.planning.fake_tensors import ShapesOnly, fake_base, tensors_of
from llmft.planning.memory_tracker import ADAPTER, EARLIER, MAPPED, OTHERS, TRAINED, WEIGHTS
from llmft.planning.plan_state import PlanState
from llmft.planning.stored import WIDTHS, mapped_bytes
from llmft.recipes.job import BoundStage
from llmft.recipes.other_models import models_of
from llmft.runs.upstream import stage_model, twin


def _out_of_sight(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Keep nothing of a tensor, as it is in memory that is not the GPU's; return what makes it."""
    shape, empty = tensor.shape, tensor.new_empty(0)
    return lambda: empty.new_empty(shape)


class PlannedModels(StageModels):
    """Models without numbers, whose bytes the memory tracker has."""

    state: PlanState

    @cached_property
    def model(self) -> Any:
        """The base with the adapter, without numbers."""
        state, memory = self.state, self.state.memory
        with torch.device("meta"), ShapesOnly():
            base = fake_base(self.base, self.load_options, varlen=self.varlen, in_ram=state.in_ram)
            train = self.bound.spec.train
            if train.gradient_checkpointing:
                put = _out_of_sight if train.activation_offloading and not state.in_ram else None
                checkpoint_layers(base, train.gradient_checkpointing_kwargs.every_n_layers, put)
            self.bare = twin(base)
            own = {tensor.untyped_storage()._cdata for tensor in tensors_of(base)}
            model = stage_model(self.bound, base, None)
            if isinstance(self.bound.work, Alignment):
                self.bound.work.extend(model)
                if self.adapter.trains_in_float32():
                    train_in_float32(model)
                elif remark := without_masters(model):
                    self.log.note(remark)
            self._made = {
                asked.path: fake_base(
                    self._other_base(asked),
                    asked.quantization.options(),
                    varlen=True,
                    in_ram=state.in_ram,
                )
                for _, asked in models_of(self.bound.spec)
            }  # before memory is followed: what making them takes is no run's
        if train.shard_base and not self._divided:
            self.log.note("train.shard_base has nothing to divide on one GPU; --gpus plans several")
        memory.vocabulary = model.get_output_embeddings().weight.shape[0]
        trains = isinstance(self.bound.work, Alignment)
        whole = trains and bool(self.adapter.trains_base)
        if not trains:
            model.requires_grad_(False)
        body = state.body.given_to(model)
        shares = self._shares(body, whole=whole)
        for tensor in tensors_of(body):
            ours = tensor.untyped_storage()._cdata in own
            kind = TRAINED if whole and tensor.requires_grad else WEIGHTS if ours else ADAPTER
            memory.add(tensor, kind, shares.get(tensor.untyped_storage()._cdata, 1.0))
        state.trained_bytes = sum(
            p.numel() * p.element_size() for p in model.parameters() if p.requires_grad
        )
        state.saved_bytes = memory.live[ADAPTER]
        if whole:
            width = WIDTHS[self.base.source.dtype]
            state.saved_bytes = sum(p.numel() for p in self.bare.parameters()) * width
        stored = stored_dtype(self.base.path, self.base.config)
        source = self.base.source
        if state.in_ram:
            memory.live[MAPPED] = mapped_bytes(model, source, stored)
            if stored != source.dtype:  # all is read, and written elsewhere
                memory.note(MAPPED, count_parameters(self.bare)[1] * WIDTHS.get(stored, 4))
        return model

    def _shares(self, model: Any, *, whole: bool) -> dict[int, float]:
        """Return how much of each storage this process has, where layers are divided.

        whole: all weights are trained. Counts the two layers that are whole for a while.
        """
        from llmft.modeling.sharded_layers import divisible_parameters, give_owners, is_here

        processes = self.state.processes
        if not self._divided:
            return {}
        layers = divisible_parameters(model)
        layers = [[p for p in layer if whole or not p.requires_grad] for layer in layers]
        give_owners(layers, processes.count)
        shares = {
            p.untyped_storage()._cdata: float(is_here(p))
            if p.requires_grad
            else 1 / processes.count
            for layer in layers
            for p in layer
        }
        sizes = [
            sum(p.nbytes * (1 - shares[p.untyped_storage()._cdata]) for p in layer)
            for layer in layers
        ]
        self.state.memory.hold(WEIGHTS, [round(size) for size in sorted(sizes)[-2:]])
        # Each pass gathers a layer twice, and sums the gradient of what is trained.
        self.state.computes(
            gathered_bytes=sum(p.nbytes * (2 + p.requires_grad) for layer in layers for p in layer)
        )
        return shares

    @property
    def _divided(self) -> bool:
        """Whether the base's layers would be divided among the planned processes."""
        return self.bound.spec.train.shard_base and self.state.processes.several

    @property
    def starts_as_reference(self) -> bool:
        """Whether answers can be compared with the reference's: not without numbers."""
        return False

    def precision(self) -> AbstractContextManager[Any]:
        """Return a context in which the model computes as in a training step."""
        bf16, kept = self.bound.spec.train.under_autocast, not self._divided
        return torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=kept)

    def count_base(self) -> int:
        """Return the base's parameters, where no adapter can be attached."""
        with torch.device("meta"):
            base = fake_base(self.base, self.load_options, varlen=False, in_ram=self.state.in_ram)
        for tensor in tensors_of(base):
            self.state.memory.add(tensor, WEIGHTS)
        return count_parameters(base)[1]

    def load_stage(self, name: str) -> Any:
        """Return an earlier stage's model on this one's base, without numbers."""
        _ = self.model
        upstream = self.bound.upstream[name]
        if upstream.stage is None:
            raise upstream.error or KeyError(name)
        made_by = upstream.stage.work
        assert isinstance(made_by, Alignment)  # a task makes no model
        return self._beside(upstream.stage, made_by)

    def reference_model(self) -> Any:
        """Return the stage's start on this stage's base, without numbers."""
        _ = self.model
        if not self.bound.goes_on and not self.adapter.trains_base:
            bare = self.state.body.given_to(twin(self.bare))
            return bare.requires_grad_(False).eval()
        return self._beside(self.bound, None)

    def base_model(self) -> Any:
        """Return the base alone, without numbers."""
        _ = self.model
        if self._base_is_kept:
            bare = self.state.body.given_to(twin(self.bare))
            return bare.requires_grad_(False).eval()
        memory = self.state.memory
        with memory.making(EARLIER):
            with torch.device("meta"):
                model = self._base_of(self.bound)
            for tensor in tensors_of(self.state.body.given_to(model)):
                memory.add(tensor)
        return model.requires_grad_(False).eval()

    def _loaded_other(self, asked: OtherModel) -> Any:
        """Return the other model without numbers, counted beside this stage's own."""
        _ = self.model
        memory = self.state.memory
        with memory.making(OTHERS):
            for tensor in tensors_of(model := self.state.body.given_to(self._made[asked.path])):
                memory.add(tensor)
        return model

    def _base_of(self, bound: BoundStage) -> Any:
        """Return a base of its own; what is merged into it changes no shape."""
        with ShapesOnly():
            return fake_base(
                self.base, self.load_options, varlen=self.varlen, in_ram=self.state.in_ram
            )

    def _beside(self, bound: BoundStage, made_by: Alignment[Any] | None) -> Any:
        memory = self.state.memory
        with memory.making(EARLIER):
            with torch.device("meta"):
                model = stage_model(bound, self._shared_base(bound), None)
                if made_by is not None:
                    made_by.extend(model)
            for tensor in tensors_of(self.state.body.given_to(model)):
                memory.add(tensor)
        return model.requires_grad_(False).eval()
