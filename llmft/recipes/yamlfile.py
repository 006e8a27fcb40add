"""YAML text to a tree with places, built from parse events so that nothing is ever constructed.

Only plain data comes out: YAML 1.2's core scalars (`2e-4` is a number, `no` is a word), lists and
mappings with text keys. Tags, merge keys and cycles are refused, sizes are limited while reading.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentEndEvent,
    DocumentStartEvent,
    MappingEndEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
    StreamStartEvent,
)

from llmft.api.errors import Fault, Place, RecipeError
from llmft.recipes.scalar import scalar
from llmft.recipes.textfile import lines_of
from llmft.recipes.tree import KeyPath, Tree, dotted, shown, visible

MAX_DEPTH = 64
MAX_NODES = 10_000
MAX_FAULTS = 100
_HALF_PAIR = re.compile("[\ud800-\udfff]")


def parse(text: str, file: str) -> Tree:
    """Return the tree of a recipe's text; `tree.faults` has what was refused but could be passed.

    Raises RecipeError where reading cannot go on: broken syntax, limits, nothing to read.
    """
    tree = Tree(file, text)
    builder = _Builder(tree, lines_of(text))
    try:
        root = builder.document(_events(builder, text))
    except _Stopped as stop:
        raise RecipeError.of([*tree.faults, stop.fault]) from stop.__cause__
    if not isinstance(root.value, dict):
        what = f"a recipe is a block of keys, and this file holds {shown(_plain(root))}"
        raise RecipeError.of(
            [*tree.faults, Fault("E010", what, "start with 'recipe: 1'", "", root.place)]
        )
    builder.lay_out(root, ())
    tree.data = _plain(root)
    return tree


@dataclass(slots=True, eq=False)
class _Node:
    value: Any  # a scalar, a list of nodes, or a dict of key -> (place of the key, node)
    place: Place
    raw: str = ""
    size: int = 1
    height: int = 1
    refused: bool = False

    def count(self, child: _Node) -> None:
        """Take a child into size and height."""
        self.size += child.size
        self.height = max(self.height, child.height + 1)


class _Stopped(Exception):
    """Reading cannot go on."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        super().__init__(fault.what)


def _stop(code: str, place: Place, what: str, fix: str = "") -> _Stopped:
    return _Stopped(Fault(code, what, fix, "", place))


def _events(builder: _Builder, text: str) -> Iterator[Any]:
    try:
        yield from YAML(typ="safe", pure=True).parse(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        if "end of stream" in str(error.problem) and error.context_mark:
            mark = error.context_mark  # where the quote was opened says more than the file's end
        place = builder.place(mark.line, mark.column) if mark else Place(builder.tree.file)
        code, what, fix = _syntax(error, place)
        raise _Stopped(Fault(code, what, fix, "", place)) from error
    except (YAMLError, ValueError, OverflowError, IndexError, RecursionError) as error:
        # ruamel lets Python's own errors through, such as chr() of a too large \U escape.
        what = f"this cannot be read as YAML ({visible(str(error))[:200]})"
        raise _Stopped(Fault("E005", what, "", "", Place(builder.tree.file, 1, 1))) from error


def _syntax(error: MarkedYAMLError, place: Place) -> tuple[str, str, str]:
    problem = str(error.problem or error.context or "the syntax is broken")
    rest = place.source[place.column - 1 :]
    if rest.startswith("\t"):
        return "E004", "a tab where YAML needs spaces", "indent with spaces"
    if rest.startswith("{") and place.source[: place.column - 1].endswith("$"):
        what = f"'${visible(rest[: rest.find('}') + 1])[:60]}' is not expanded here"
        return "E051", what, "write the value"
    if "mapping values are not allowed" in problem:
        fix = "begin a new key on its own line, at the same depth as its neighbours;" \
            " quote text that contains ': '"  # fmt: skip
        return "E005", "a second ':' where no key can be", fix
    if "cannot start any token" in problem and rest:
        return "E005", f"a value cannot begin with {rest[0]}", "put the text in quotes"
    if "while scanning a quoted scalar" in str(error.context) and "end of stream" in problem:
        return "E005", "this quote is never closed", "close it"
    if "undefined tag handle" in problem:
        return "E009", "a tag is refused: a recipe is plain data", "remove the tag"
    if "expected <block end>" in problem:
        fix = "indent the keys of a block equally, and write a colon and a space after each"
        return "E005", "this line does not fit its block", fix
    if "but got '<stream end>'" in problem:
        mark = error.context_mark
        begun = f" that was opened on line {mark.line + 1}" if mark else ""
        return "E005", f"a bracket{begun} is never closed", "close the bracket"
    if "expected ',' or" in problem and error.context_mark:
        opened = f"inside the bracket that was opened on line {error.context_mark.line + 1}"
        fix = "close the bracket, or write a comma between its items"
        return "E005", f"{opened}, this fits nowhere", fix
    if "expected '<document start>'" in problem:
        return "E005", "there is text after the end of the recipe", "make it one block of keys"
    return "E005", visible(problem), ""


class _Builder:
    """Builds nodes from events, and lays them out as data and places."""

    def __init__(self, tree: Tree, lines: list[str]) -> None:
        self.tree = tree
        self.lines = lines
        self.anchors: dict[str, _Node | None] = {}  # None while the node is still open
        self.nodes = 0

    def place(self, line: int, column: int, end: Any = None) -> Place:
        """Return a place from ruamel's numbers, which count from 0."""
        source = self.lines[line] if line < len(self.lines) else ""
        stop = end.column if end is not None and end.line == line else len(source)
        width = max(1, stop - column) if end is not None else 1
        return Place(self.tree.file, line + 1, column + 1, source, width)

    def document(self, events: Iterator[Any]) -> _Node:
        """Return the root of the only document."""
        root: _Node | None = None
        for event in events:
            if isinstance(event, DocumentStartEvent):
                place = self.place(event.start_mark.line, event.start_mark.column)
                if root is not None:
                    what = "a second document starts here; a recipe is one document"
                    raise _stop("E010", place, what, "remove the '---', or make two files")
                if event.version not in (None, (1, 2)):
                    version = ".".join(map(str, event.version))
                    what = f"the file claims YAML {version}, and a recipe is YAML 1.2"
                    raise _stop("E005", place, what, "remove the %YAML line")
            elif not isinstance(event, StreamStartEvent | StreamEndEvent | DocumentEndEvent):
                root = self.node(event, events, ())
        if root is None:
            fix = "start with 'recipe: 1'; `llmft list-recipes` shows complete ones"
            raise _stop("E010", Place(self.tree.file, 1, 1), "the file is empty", fix)
        return root

    def node(self, event: Any, events: Iterator[Any], path: KeyPath) -> _Node:
        """Return the node that begins with this event."""
        start = event.start_mark
        single = isinstance(event, ScalarEvent | AliasEvent)
        place = self.place(start.line, start.column, event.end_mark if single else None)
        self.count(1, len(path) + 1, place)
        if isinstance(event, AliasEvent):
            return self.alias(event.anchor, place, path)
        node = _Node(None, place)
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        if isinstance(event, ScalarEvent):
            plain = event.implicit[0]
            text = _joined(event.value)
            node.value = scalar(text) if plain else text
            if plain and isinstance(node.value, int | float):
                node.raw = event.value
            if _HALF_PAIR.search(text):  # no file and no tokenizer takes it
                what = "the text has half of a surrogate pair (an escape such as \\ud800)"
                self.refuse("E022", node, path, what, "write the character itself")
        elif isinstance(event, SequenceStartEvent):
            node.value = []
            while not isinstance(inner := next(events), SequenceEndEvent):
                child = self.node(inner, events, (*path, len(node.value)))
                node.value.append(child)
                node.count(child)
        else:
            node.value = {}
            while not isinstance(inner := next(events), MappingEndEvent):
                self.pair(node, inner, events, path)
        if event.tag is not None:
            tag = visible(str(event.tag).replace("tag:yaml.org,2002:", "!!"))[:60]
            what = f"the tag '{tag}' is refused: a recipe is plain data"
            self.refuse("E009", node, path, what, "remove the tag")
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def alias(self, name: str, place: Place, path: KeyPath) -> _Node:
        """Return the node that an alias repeats."""
        target = self.anchors.get(name)
        if target is None:
            node = _Node(None, place)
            label = visible(name)[:60]
            what = f"there is no '&{label}' above this alias"
            if name in self.anchors:
                what = f"the alias '*{label}' is inside the value that it repeats"
            self.refuse("E007", node, path, what, "write the value out")
            return node
        self.count(target.size - 1, len(path) + target.height, place)
        return target

    def pair(self, node: _Node, event: Any, events: Iterator[Any], path: KeyPath) -> None:
        """Read a key and its value into a mapping."""
        name = _joined(event.value) if isinstance(event, ScalarEvent) else "?"
        inner = (*path, name)
        key = self.node(event, events, inner)
        value_event = next(events)
        value = self.node(value_event, events, inner)
        if isinstance(value_event, ScalarEvent) and value.value is None and not value_event.value:
            value.place = key.place  # nothing stands where the value should; the parser looks on
        plain = isinstance(event, ScalarEvent) and event.implicit[0]
        if not isinstance(event, ScalarEvent):
            # A fresh node: an alias would mark what it repeats as refused.
            key = _Node(None, self.place(event.start_mark.line, event.start_mark.column))
            what = "a key must be a word, not a list, a block or an alias"
            self.refuse("E011", key, path, what, "write the key as a word")
        elif plain and not name:
            self.refuse("E011", key, path, "a key is missing before ':'", "write a key")
        elif plain and name == "<<":
            what = "the merge key '<<' is refused: settings are written where they are used"
            self.refuse("E008", key, path, what, "write the keys out")
        elif name in node.value:
            first = node.value[name][0]
            what = (
                f"'{visible(name)[:60]}' is written twice:"
                f" on line {first.line} and on line {key.place.line}"
            )
            self.refuse("E006", key, inner, what, "keep one of them")
        elif not _HALF_PAIR.search(name):  # else it was refused when it was read
            node.count(value)
            node.value[name] = (key.place, value)
            value.refused = value.refused or key.refused

    def count(self, nodes: int, depth: int, place: Place) -> None:
        """Stop where the file grows over the limits, aliases counted as if written out."""
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            what = f"more than {MAX_NODES:,} values, aliases counted as if written out"
            raise _stop("E002", place, what, "a recipe is a page or two; remove repetitions")
        if depth > MAX_DEPTH:
            raise _stop("E002", place, f"more than {MAX_DEPTH} blocks inside each other")

    def refuse(self, code: str, node: _Node, path: KeyPath, what: str, fix: str) -> None:
        """Note a fault that reading can pass; what it is about is not looked at again."""
        node.refused = True
        self.tree.faults.append(Fault(code, what, fix, dotted(path), node.place))
        if len(self.tree.faults) >= MAX_FAULTS:
            what = f"{MAX_FAULTS} faults so far; the rest is not checked"
            raise _stop("E002", node.place, what)

    def lay_out(self, node: _Node, path: KeyPath) -> None:
        """Note the place of everything under a node."""
        tree = self.tree
        tree.values[path] = node.place
        if node.raw:
            tree.raw[path] = node.raw
        if node.refused:
            tree.broken.add(path)
        if isinstance(node.value, dict):
            for key, (place, child) in node.value.items():
                tree.keys[(*path, key)] = place
                self.lay_out(child, (*path, key))
        elif isinstance(node.value, list):
            for index, child in enumerate(node.value):
                self.lay_out(child, (*path, index))


def _plain(node: _Node) -> Any:
    if isinstance(node.value, dict):
        return {key: _plain(child) for key, (_, child) in node.value.items()}
    if isinstance(node.value, list):
        return [_plain(child) for child in node.value]
    return node.value


def _joined(text: str) -> str:
    """Return a text with each surrogate pair as its one character: JSON escapes so."""
    if not _HALF_PAIR.search(text):
        return text
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:  # half a pair, which is refused
        return text
