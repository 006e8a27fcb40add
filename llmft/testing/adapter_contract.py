"""The contract of an adapter, as tests: what the engine counts on in training and saving."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from llmft.api.errors import PluginError
from llmft.api.kinds import Kind
from llmft.modeling.tiny_models import tiny_gpt2, tiny_llama
from llmft.registry import return_checks
from llmft.testing import measures
from llmft.testing.config_checks import SettingsContract

FEW = 3
"""Steps that move every parameter, also those behind a factor that starts at zero."""


class AdapterContract(SettingsContract):
    """Checks an adapter on each of `models`, with each of `configs`.

    models: functions that return a fresh tiny base, the same at each call. An adapter that cannot
    work on one says so in `check`; that model is skipped, but it must work on one of them.
    steps, learning_rate: of the short training that must lower the loss. Where it is enough that
    the adapter has moved, `FEW` steps are taken.
    """

    kind: ClassVar[Kind] = "adapter"
    models: ClassVar[Sequence[Callable[[], Any]]] = (tiny_llama, tiny_gpt2)
    steps: ClassVar[int] = 8
    learning_rate: ClassVar[float] = 1e-2

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Run each test once for each of `configs`, and of `models` where it asks for a `base`."""
        super().pytest_generate_tests(metafunc)
        if "base" in metafunc.fixturenames:
            metafunc.parametrize("base", self.models, ids=lambda make: make.__name__)

    @pytest.fixture(autouse=True)
    def _one_thread(self) -> Iterator[None]:
        with measures.one_thread():
            yield

    def test_it_works_on_one_of_the_models(self, settings: Mapping[str, Any]) -> None:
        faults = [self._faults(settings, base) for base in self.models]
        assert not all(faults), f"'check' refuses every model: {faults}"

    def test_only_the_adapter_requires_grad(self, settings: Mapping[str, Any], base: Any) -> None:
        plain = base()
        weights = list(plain.parameters())
        model = self._attached(settings, base, plain)
        learnt = [p for p in model.parameters() if p.requires_grad]
        assert learnt, "no parameter requires grad: there is nothing to train"
        of_the_base = {id(p) for p in weights}
        left = sum(id(p) in of_the_base for p in learnt)
        if self.method_class.trains_base:
            added = len(learnt) - left
            assert not added, f"it trains the base, and {added} parameters are none of the base's"
            return
        assert not left, f"{left} weights of the base still require grad"

    def test_training_lowers_the_loss_and_leaves_the_base(
        self, settings: Mapping[str, Any], base: Any
    ) -> None:
        plain = base()
        weights = dict(plain.named_parameters())
        model = self._attached(settings, base, plain)
        of_the_base = self.method_class.trains_base
        frozen = {name for name, p in weights.items() if not (of_the_base and p.requires_grad)}
        before = measures.loss(model)
        self._train(model, self.steps)
        after = measures.loss(model)
        assert after < before, f"the loss went from {before:.4f} to {after:.4f}"
        fresh = dict(base().named_parameters())
        moved = [n for n in fresh if n in frozen and not measures.same(weights[n], fresh[n])]
        assert not moved, f"training changed weights of the base: {moved[:5]}"

    def test_every_learnt_parameter_gets_a_gradient(
        self, settings: Mapping[str, Any], base: Any
    ) -> None:
        model = self._attached(settings, base)
        measures.nudge(model)
        found = measures.gradients(model)
        silent = [name for name, gradient in found.items() if not measures.any_of(gradient)]
        assert not silent, f"parameters that no loss reaches: {silent[:5]}"

    def test_disabled_gives_exactly_the_base(self, settings: Mapping[str, Any], base: Any) -> None:
        if self.method_class.trains_base:
            pytest.skip("the adapter trains the base itself, which is then no longer there")
        adapter = self.make(settings)
        model = self._attached(settings, base, adapter=adapter)
        self._train(model)
        adapted, plain = measures.logits(model), measures.logits(base())
        assert not measures.same(adapted, plain), "after training the adapter changes nothing"
        with adapter.disabled(model):
            off = measures.logits(model)
        assert measures.same(off, plain), "disabled, the model does not answer as the base"
        assert measures.same(measures.logits(model), adapted), "disabled() does not switch back on"
        with pytest.raises(KeyError), adapter.disabled(model):
            raise KeyError
        assert measures.same(measures.logits(model), adapted), "an error leaves the adapter off"

    def test_a_fresh_adapter_that_says_so_changes_nothing(
        self, settings: Mapping[str, Any], base: Any
    ) -> None:
        adapter = self.make(settings)
        model = self._attached(settings, base, adapter=adapter)
        distance = measures.distance(measures.logits(model), measures.logits(base()))
        if adapter.starts_as_base():
            assert distance <= 1e-4, f"'starts_as_base', and it moves a logit by {distance:.2e}"

    def test_it_saves_only_itself(
        self, settings: Mapping[str, Any], base: Any, tmp_path: Path
    ) -> None:
        plain = base()
        known = {id(tensor) for tensor in measures.tensors(plain)}
        adapter = self.make(settings)
        model = self._attached(settings, base, plain, adapter)
        self._train(model)
        own = sum(t.numel() * t.element_size() for t in measures.tensors(model)
                  if id(t) not in known)  # fmt: skip
        folder = measures.saved(adapter, model, tmp_path)
        assert not (bad := measures.unwelcome_files(folder)), f"files of another kind: {bad}"
        held = measures.saved_tensors(folder)
        assert held, "no safetensors file was written"
        if self.method_class.trains_base:
            self._check_whole_model(folder, model)
            return
        copies = measures.copies(held, base())
        assert not copies, f"weights of the base were saved with the adapter: {copies[:5]}"
        size = sum(t.numel() * t.element_size() for t in held.values())
        # What is derived from them may be saved beside them, and an entry's row and column.
        assert size <= 3 * own, f"{size} bytes of tensors were saved, the adapter has {own}"

    def test_a_saved_adapter_loads_exactly(
        self, settings: Mapping[str, Any], base: Any, tmp_path: Path
    ) -> None:
        adapter = self.make(settings)
        model = self._attached(settings, base, adapter=adapter)
        self._train(model)
        folder = measures.saved(adapter, model, tmp_path)
        plain = base()
        of_the_base = {id(p) for p in plain.parameters()}
        measures.stir_random_state()
        again = self.make(settings).load(plain, folder)
        assert measures.same(measures.logits(again), measures.logits(model)), (
            "the loaded adapter does not give the logits of the one that was saved"
        )
        learnt = measures.learnt(again)
        assert learnt.keys() == measures.learnt(model).keys(), "other parameters require grad"
        if not self.method_class.trains_base:
            assert not any(id(p) in of_the_base for p in learnt.values()), "the base requires grad"
        for name, parameter in measures.learnt(model).items():
            assert measures.same(learnt[name], parameter), f"'{name}' was not restored"

    def test_the_same_seed_gives_the_same_adapter(
        self, settings: Mapping[str, Any], base: Any
    ) -> None:
        first = measures.learnt(self._attached(settings, base))
        second = measures.learnt(self._attached(settings, base))
        assert first.keys() == second.keys()
        unlike = [name for name in first if not measures.same(first[name], second[name])]
        assert not unlike, f"parameters that torch's seed does not settle: {unlike[:5]}"

    def test_merging_gives_a_plain_model_of_the_same_answers(
        self, settings: Mapping[str, Any], base: Any
    ) -> None:
        adapter = self.make(settings)
        model = self._attached(settings, base, adapter=adapter)
        self._train(model)
        adapted = measures.logits(model)
        if not adapter.mergeable:
            with pytest.raises(NotImplementedError):
                adapter.merge(model)
            return
        plain = base()
        try:
            merged = adapter.merge(model)
        except NotImplementedError:
            if getattr(plain, "is_quantized", False):
                return  # rounding could lose the update
            raise
        assert type(merged) is type(plain), f"the merged model is a '{type(merged).__name__}'"
        assert merged.state_dict().keys() == plain.state_dict().keys(), "it has other weights"
        distance = measures.distance(measures.logits(merged), adapted)
        assert distance <= 1e-4, f"merging moves a logit by {distance:.2e}"

    def test_gradient_checkpointing_gives_the_same_gradients(
        self, settings: Mapping[str, Any], base: Any
    ) -> None:
        if not self.method_class.supports_gradient_checkpointing:
            pytest.skip("the adapter declares that it cannot")
        found = []
        for checkpointing in (False, True):
            plain = base()
            if checkpointing:
                plain.gradient_checkpointing_enable({"use_reentrant": False})
            model = self._attached(settings, base, plain)
            measures.nudge(model)
            found.append(measures.gradients(model))
        assert found[0].keys() == found[1].keys()
        for name, gradient in found[0].items():
            other = found[1][name]
            assert (gradient is None) == (other is None), f"'{name}' loses its gradient"
            distance = 0.0 if gradient is None else measures.distance(gradient, other)
            assert distance <= 1e-5, f"checkpointing moves the gradient of '{name}'"

    def test_rows_laid_end_to_end_do_not_see_each_other(
        self, settings: Mapping[str, Any], base: Any
    ) -> None:
        if not self.method_class.supports_packing:
            pytest.skip("the adapter declares that it cannot")
        found = []
        for packed in (False, True):
            plain = base()
            if packed:
                measures.pack_padding_free(plain)
            model = self._attached(settings, base, plain)
            measures.nudge(model)
            found.append(measures.row_losses(model))
        distance = measures.distance(*found)
        assert distance <= 1e-4, f"a row's loss moves by {distance:.2e} beside other rows"

    def _check_whole_model(self, folder: Path, model: Any) -> None:
        """Fail where plain transformers does not load the folder as the model that was saved."""
        from transformers import AutoModelForCausalLM

        plain = AutoModelForCausalLM.from_pretrained(folder)
        assert measures.same(measures.logits(plain), measures.logits(model)), (
            "plain transformers gives other logits with what was saved"
        )

    def _faults(self, settings: Mapping[str, Any], base: Any) -> list[Any]:
        try:
            return return_checks.refusals_of(self.make(settings), base().to("meta"))
        except PluginError as error:
            pytest.fail(error.faults[0].what)

    def _attached(
        self, settings: Mapping[str, Any], base: Any, plain: Any = None, adapter: Any = None
    ) -> Any:
        if faults := self._faults(settings, base):
            pytest.skip(f"'check' refuses this model: {faults[0][1]}")
        measures.seed()
        plain = base() if plain is None else plain
        return (self.make(settings) if adapter is None else adapter).attach(plain)

    def _train(self, model: Any, steps: int = FEW) -> None:
        measures.train(model, steps=steps, learning_rate=self.learning_rate)
