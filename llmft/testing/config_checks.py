"""What every method's contract has in common: the rules for its class and its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError

from llmft.api.kinds import Kind
from llmft.registry.contract import check_class
from llmft.registry.hook_manager import ContractViolation


class SettingsContract:
    """Checks that a class declares what its kind must, and that its Config is strict and told.

    method_class: the class under test. configs: blocks of settings to test it with, without the
    key `method`; at least one.
    """

    kind: ClassVar[Kind]
    method_class: ClassVar[type[Any]]
    configs: ClassVar[Sequence[Mapping[str, Any]]] = ({},)

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Run each test that asks for `settings` once for each of `configs`."""
        if "settings" in metafunc.fixturenames:
            metafunc.parametrize("settings", self.configs, ids=lambda block: str(dict(block)))

    def make(self, settings: Mapping[str, Any]) -> Any:
        """Return a method made of a block of settings, as the engine makes it."""
        return self.method_class(self._config(settings))

    def test_the_class_declares_what_its_kind_must(self) -> None:
        method = self.method_class.method
        assert isinstance(method, str), "'method' must be the name that a recipe writes"
        assert method, "'method' must be the name that a recipe writes"
        assert (self.method_class.__doc__ or "").strip(), (
            "the class needs a docstring: users see it"
        )
        try:
            check_class(self.kind, self.method_class)
        except ContractViolation as exc:
            pytest.fail(exc.reason)

    def test_the_settings_cannot_be_changed(self, settings: Mapping[str, Any]) -> None:
        config = self._config(settings)
        name = next(iter(type(config).model_fields))
        with pytest.raises(ValidationError):
            setattr(config, name, getattr(config, name))

    def test_the_settings_refuse_unknown_keys(self, settings: Mapping[str, Any]) -> None:
        with pytest.raises(ValidationError):
            self._config({**settings, "no_such_key_anywhere": 1})

    def test_the_settings_survive_being_written_out(self, settings: Mapping[str, Any]) -> None:
        config = self._config(settings)
        again = self.method_class.Config.model_validate_json(config.model_dump_json())
        assert again == config, "a resolved recipe must give the same settings when read again"

    def test_every_field_is_described(self) -> None:
        fields = self.method_class.Config.model_fields
        silent = [name for name, field in fields.items() if not (field.description or "").strip()]
        assert not silent, f"fields without a description: {silent}"

    def _config(self, settings: Mapping[str, Any]) -> Any:
        block = {"method": self.method_class.method, **settings}
        return self.method_class.Config.model_validate(block)
