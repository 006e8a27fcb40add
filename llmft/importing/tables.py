"""The tables of translation: what each key of another tool is here, as data.

`tables/PEER.yaml` has a rule for each key, read by this module into checked models. A contributor
extends a table by adding keys; `docs/import.md` says how.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from llmft.api.settings import Settings
from llmft.recipes.yamlfile import parse

FOLDER = Path(__file__).parent / "tables"

Effect = Literal["none", "speed", "logging", "decide", "cannot"]


class Case(Settings):
    """What one value of a key comes to."""

    effect: Effect = Field(description="what it changes")
    why: str = Field("", description="the comment")


class Rule(Settings):
    """What one key of a peer is here.

    It is translated (`to`), or has an `effect` that is told, or is read by code (`by`) because it
    says something together with other keys.
    """

    to: str | dict[str, str] | None = Field(
        None, description="the setting's path in a recipe; or a path for each trainer"
    )
    values: dict[str, Any] = Field(
        default_factory=dict, description="the peer's word for a value -> ours"
    )
    cases: dict[str, Case] = Field(
        default_factory=dict, description="a value, or an item of a list -> what it comes to"
    )
    default: Any = Field(None, description="the value that the peer takes where the key is not set")
    defaults: dict[str, Any] = Field(
        default_factory=dict, description="the same for single trainers"
    )
    effect: Effect | None = Field(None, description="what the key changes, whatever its value")
    why: str = Field("", description="the comment; for decide and cannot: what is missing")
    off: list[Any] = Field(
        default_factory=lambda: [None, False, "", [], {}],
        description="values that ask for nothing",
    )
    by: str = Field("", description="the part of the peer's code that reads the key")

    @model_validator(mode="after")
    def _one_way(self) -> Rule:
        ways = [self.to is not None, self.effect is not None, bool(self.by), bool(self.cases)]
        if self.to is not None and self.cases:
            ways.pop()
        if sum(ways) != 1:
            raise ValueError("a rule has one of: to, effect, cases, by")
        if self.effect and self.effect != "none" and not self.why:
            raise ValueError(f"an effect of '{self.effect}' needs a why")
        return self


class Table(Settings):
    """All keys of one peer at one version."""

    peer: str = Field(description="the peer's name, as on the command line")
    title: str = Field(description="the peer's name, as people write it")
    version: str = Field(description="the version whose keys and defaults these are")
    source: str = Field(description="where the keys and defaults are stated")
    extends: str | None = Field(None, description="a table whose keys hold here too")
    keys: dict[str, Rule] = Field(description="each key -> what it is here")

    def rule(self, name: str) -> Rule | None:
        """Return the rule of a key, whose list numbers are written as []; None if there is none.

        A rule of `block.*` holds for every key of that block without a rule of its own.
        """
        if name in self.keys:
            return self.keys[name]
        block = name
        while "." in block:
            block = block.rpartition(".")[0]
            if found := self.keys.get(f"{block}.*"):
                return found
        return None


def _data(name: str) -> Any:
    """Return what a file of this folder says; it ships with llmft, so a fault in it is a bug."""
    path = FOLDER / f"{name}.yaml"
    tree = parse(path.read_text("utf-8"), str(path))
    if tree.faults:
        raise ValueError("\n".join(fault.line() for fault in tree.faults))
    return tree.data


@cache
def table(peer: str) -> Table:
    """Return a peer's table, with the keys of the tables that it extends."""
    own = Table(**_data(peer))
    if own.extends is None:
        return own
    return own.model_copy(update={"keys": {**table(own.extends).keys, **own.keys}})


@cache
def known_rows() -> dict[str, dict[str, Any]]:
    """Return what is known of public data sets' rows: hub id, in small letters -> facts."""
    return {name.lower(): facts for name, facts in _data("rows")["rows"].items()}


@cache
def registered_rows(peer: str) -> dict[str, dict[str, Any]]:
    """Return what a peer ships with of public data sets: the names it knows -> their facts."""
    found: dict[str, dict[str, Any]] = _data(f"{peer}-data")["rows"]
    return found


def template_of(peer: str, path: str) -> str:
    """Return which of its own templates a peer takes for a model, by its path; '' if unknown."""
    name = path.lower().rstrip("/").rpartition("/")[2]
    found = (one for one in _data(f"{peer}-data")["templates"] if re.search(one["name"], name))
    return next((str(one["template"]) for one in found), "")


@cache
def known_keys() -> dict[str, list[list[str]]]:
    """Return, for each peer, the lists of keys by which a file of it is known."""
    found: dict[str, list[list[str]]] = _data("peers")["peers"]
    return found


class ChatTemplate(Settings):
    """A chat template that a tool knows by name, and the token that ends an answer in it.

    learn_end: `turn` where the tool learns all that its template writes after an answer.
    """

    text: str
    end: str
    learn_end: Literal["stop", "turn"] = "stop"


class Ends(Settings):
    """A model by its name: its end-of-text, and the token that ends an answer in its template.

    dtype, positions: the type of its weights and its longest row, where they are known. begins:
    whether a conversation begins with the tokenizer's beginning-of-text, or it has none.
    """

    name: str
    eos: str
    end: str
    dtype: str = ""
    positions: int | None = None
    begins: bool = False


@cache
def known_templates(tool: str = "templates") -> dict[str, ChatTemplate]:
    """Return the chat templates that are written out here, by the tools' names.

    tool: a tool that has templates of its own under names that others have too.
    """
    found = _data("templates")[tool]
    return {name: ChatTemplate(**one) for name, one in found.items()}


def ends_of(path: str) -> Ends | None:
    """Return what is known of a model's end tokens, by its path; None where nothing is."""
    name = path.lower().rstrip("/").rpartition("/")[2]
    return next((one for one in _models() if re.search(one.name, name)), None)


@cache
def _models() -> tuple[Ends, ...]:
    return tuple(Ends(**one) for one in _data("templates")["models"])


PEERS = ("trl", "alignment-handbook", "axolotl", "llamafactory", "ms-swift", "oumi", "unsloth")
"""The peers with a table, by name."""
