"""From a peer's configuration to the draft of a recipe and what is to be said about each key."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any

from llmft.importing.configuration import Configuration, Key, as_bool
from llmft.importing.draft import Draft
from llmft.importing.schema import Schema
from llmft.importing.tables import Rule, Table
from llmft.importing.verdicts import Finding, Grade
from llmft.recipes.tree import visible
from llmft.system.nearest import did_you_mean

_INERT = "it has no effect with the other keys of this file, or what it is about is not taken over"
_BLOCKS = ("model", "adapter", "alignment", "data", "train", "evaluate", "push_to_hub")


class Translation:
    """One configuration on its way into a recipe: the draft so far, and what was found."""

    def __init__(
        self,
        table: Table,
        configuration: Configuration,
        schema: Schema,
        *,
        trainer: str = "",
        processes: int | None = None,
        rows: str = "",
    ) -> None:
        self.table, self.configuration, self.schema = table, configuration, schema
        self.trainer = trainer or configuration.trainer
        self.processes = processes or configuration.processes or 1
        self.rows = rows
        self.draft = Draft()
        self.findings: list[Finding] = []
        self.taken: set[str] = set()
        self.stopped = False
        self._by_setting: dict[str, Key] = {}

    # --- what the peer says

    @property
    def origin(self) -> str:
        """The peer and its version, as comments name them."""
        return f"{self.table.title} {self.table.version}"

    def key(self, name: str) -> Key | None:
        """Return a key; None where it is not there or null.

        It counts as read where the table leaves it to code; others are translated by the table too.
        """
        rule = self.table.rule(re.sub(r"\[\d+\]", "[]", name))
        if rule is None or rule.by:
            self.taken.add(name)
        key = self.configuration.keys.get(name)
        if key is None or key.value is None or name in self.configuration.puzzles:
            return None
        return key

    def get(self, name: str) -> Any:
        """Return a key's value, or the peer's default."""
        key = self.key(name)
        if key is None:
            rule = self.table.rule(name)
            return self._default(rule) if rule else None
        return as_bool(key.value)

    def stated(self, name: str) -> bool:
        """Return whether the file gives a key a value."""
        return self.configuration.get(name) is not None

    def _default(self, rule: Rule) -> Any:
        return rule.defaults.get(self.trainer, rule.default)

    # --- what becomes of it

    def stop(self, key: Key | str | None, why: str, missing: str) -> None:
        """Say that nothing of this can be a recipe; the other keys are not looked at."""
        self.note("cannot", key, why, missing=missing)
        self.stopped = True

    def method(self, block: str, name: str, key: Key | None = None, why: str = "") -> None:
        """Choose a block's method; a finding where it is not installed."""
        self.draft.set(f"{block}.method", name, key, why)
        if not self.schema.has_method(block, name):
            self.note(
                "cannot",
                key or f"{block}.method",
                f"there is no {block} method '{name}' yet",
                missing=f"{block} method {name}",
            )

    @property
    def methods(self) -> dict[str, str]:
        """The chosen method of each block."""
        return {b: self.draft.get(f"{b}.method") or "" for b in ("adapter", "alignment", "data")}

    def set(
        self,
        home: str,
        value: Any,
        key: Key | None = None,
        why: str = "",
        *,
        without: Grade = "cannot",
        said: str = "",
    ) -> bool:
        """Set a setting of the recipe, and return whether there is one.

        without: what the key comes to where a recipe has no such setting; why: the comment.
        """
        if not self.schema.has(home, self.methods):
            if self.schema.has_method_of(home, self.methods):
                self.note(without, key or said or home, f"a recipe has no {home} yet", missing=home)
            return False
        number = isinstance(value, int | float) and not isinstance(value, bool)
        raw = key.raw if key is not None and number and key.value == value else ""
        self.draft.set(home, value, key, why, raw)
        return True

    def note(
        self, grade: Grade, key: Key | str | None, why: str, *, block: str = "", missing: str = ""
    ) -> None:
        """Say what a key comes to; `key` may be just a name, where the file does not state it."""
        where = key if isinstance(key, Key) else None
        name = where.name if where else str(key or "")
        if isinstance(key, str) and key in self.configuration.keys:
            where = self.configuration.keys[key]
        said = str(where) if where else ""
        place = where.place if where else None
        finding = Finding(name, grade, why, said, place, missing or name)
        if grade == "decide":
            why = f"DECIDE: {why}"
        if finding not in self.findings:
            self.findings.append(finding)
        if where is not None and not self.draft.mentions(where):
            self.draft.entries.append(_left_out(block, where, why))
        elif where is None:
            self.draft.entries.append(_left_out(block, None, f"{name}: {why}" if name else why))

    # --- the table

    def apply(self) -> None:
        """Translate every key by the table; what code has read already is left alone."""
        for name, key in self.configuration.keys.items():
            if name in self.configuration.puzzles:
                self.note("decide", key, self.configuration.puzzles[name], missing="interpolation")
                continue
            rule = self.table.rule(key.rule_name)
            if rule is None:
                self._unknown(key)
            elif key.value is None and key.values is None:
                continue  # null: as if it were not there
            elif name not in self.taken:
                self._apply(key, rule)
        for name, rule in self.table.keys.items():
            value = self._default(rule)
            if value is None or rule.to is None or self.stated(name) or name in self.taken:
                continue
            home = self._home(rule)
            if home and self.draft.entry(home) is None:
                why = f"the default of {self.origin}{f': {rule.why}' if rule.why else ''}"
                self.set(home, _renamed(rule, value), None, why, without="cannot", said=name)

    def _home(self, rule: Rule) -> str | None:
        return rule.to.get(self.trainer) if isinstance(rule.to, Mapping) else rule.to

    def _apply(self, key: Key, rule: Rule) -> None:
        value = as_bool(key.value) if key.values is None else key.value
        off = any(value == item and type(value) is type(item) for item in rule.off)
        if rule.by:
            if value is not None and not off:
                self.note("decide", key, rule.why or _INERT, missing=key.rule_name)
            return
        if rule.cases:
            self._cases(key, rule, value)
        if rule.effect is not None:
            if not off or rule.effect == "none":
                grade = rule.effect
                self.note(grade, key, rule.why or "no effect on what is trained", missing=rule.why)
            return
        home = self._home(rule)
        if rule.to is None:
            return
        if home is None:
            if not off:
                self.note(
                    "decide", key, f"'{self.trainer}' does not read it", missing=key.rule_name
                )
            return
        if value is None or (off and value in ("", [], {})):
            return
        self.set(home, _renamed(rule, _typed(value)), key, rule.why)

    def _cases(self, key: Key, rule: Rule, value: Any) -> None:
        for item in value if isinstance(value, list) else [value]:
            if any(item == none and type(item) is type(none) for none in rule.off):
                continue
            case = rule.cases.get(_word(item), rule.cases.get("*"))
            if case is None:
                why = f"'{visible(str(item))[:80]}' is not known here"
                self.note("cannot", key, why, missing=f"{key.rule_name}: {visible(str(item))[:80]}")
            elif case.effect != "none" or case.why:
                why = case.why or "no effect on what is trained"
                self.note(case.effect, key, why, missing=f"{key.rule_name}: {_word(item)}")

    def _unknown(self, key: Key) -> None:
        known = [name for name in self.table.keys if not name.endswith("*")]
        near = did_you_mean(key.rule_name, known)
        why = f"{self.table.title} {self.table.version} has no such key, by the table"
        self.note(
            "decide", key, f"{why}; {near}" if near else why, missing=f"unknown: {key.rule_name}"
        )


def _left_out(block: str, key: Key | None, why: str) -> Any:
    from llmft.importing.draft import Entry

    return Entry(block, key, why=why)


def _renamed(rule: Rule, value: Any) -> Any:
    return rule.values.get(_word(value), value) if not isinstance(value, list | dict) else value


def _word(value: Any) -> str:
    return (
        {True: "true", False: "false"}.get(value, str(value))
        if isinstance(value, bool)
        else str(value)
    )


def _typed(value: Any) -> Any:
    """Return a number, or a list of them, that is written as text: PyYAML reads 2e-5 as text."""
    if isinstance(value, list):
        made = [_typed(item) for item in value]
        return made if all(isinstance(item, int | float) for item in made) else value
    if isinstance(value, str) and value.strip()[:1] in tuple("0123456789.-+"):
        for kind in (int, float):
            with suppress(ValueError):
                return kind(value)
    return value


def translated(translation: Translation) -> Translation:
    """Run a peer's own code, which reads what several keys say together, and then its table."""
    name = translation.table.peer.replace("-", "_")
    module = import_module(f"llmft.importing.structure.{name}")
    structure: Callable[[Translation], None] = module.structure
    structure(translation)
    if not translation.stopped:
        from llmft.importing.structure.arguments import sampling
        from llmft.importing.structure.sharding import divide
        from llmft.importing.structure.weights import experts, stored_otherwise

        sampling(translation)
        stored_otherwise(translation)
        divide(translation)
        experts(translation)
        translation.apply()
    return translation
