"""Token ids of a text, in bounded time whatever regular expression the tokenizer came with.

A tokenizer may split texts by a regular expression of its own, and one that backtracks takes
minutes for a short text. The usual ones are run here; any other one in a process that can be ended.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmft.api.errors import EnvironmentFault
from llmft.system.bounded_child import BoundedChild, OutOfBounds, WorkFailed

# The key may be written with escapes; the file is too large to be parsed for it.
_KEY = "".join(rf"(?:{char}|\\u00{ord(char):x})" for char in "Regex")
_IN_JSON = re.compile(rf'"{_KEY}"\s*:\s*("(?:[^"\\]|\\.)*")')
_LONG = 20_000  # characters; for shorter texts a plain expression takes milliseconds
_OFFSETS = {"return_offsets_mapping": True}
PANIC = "PanicException"  # what a Rust library raises; it is no Exception
# Those of GPT-2, Llama 3 and cl100k, Qwen 2, and o200k: nothing in them backtracks.
_USUAL = frozenset({
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
})  # fmt: skip
# One character or class of them, then how often; or the bar between alternatives.
_PIECE = re.compile(
    r"(?:\\[pP]\{\^?\w+\}|\\[^1-9gkK]|\[\^?\]?(?:\\.|[^\]\\\[])*\]|[^\\\[\](){}*+?|^$])"
    r"(?P<often>[?*+]|\{\d{1,2}(?:,\d{1,2})?\})?|(?P<bar>\|)",
    re.DOTALL,
)


class BoundedTokens:
    """A tokenizer's ids, as it gives them itself."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        patterns = [] if backend is None else list(_patterns_in_use(backend))
        self._usual = all(pattern in _USUAL for pattern in patterns)
        self._plain = self._usual or all(is_plain(pattern) for pattern in patterns)
        self._child = BoundedChild(self._here)

    def ids(self, text: str, **options: Any) -> list[int]:
        """Return the ids of a text. options: as the tokenizer takes them.

        Raises EnvironmentFault (E212) where the tokenizer's code gives up, or takes too long.
        """
        return self.located(text, **options)[0]

    def located(
        self, text: str, *, offsets: bool = False, **options: Any
    ) -> tuple[list[int], list[int]]:
        """Return the ids of a text, and the first character of each token where `offsets` is set.

        Raises as `ids`.
        """
        question = (text, options, offsets)
        if self._in_process(text) and self._in_process(options.get("text_pair") or ""):
            with _faults():
                return self._here(question)
        try:
            ids, starts = self._child.ask(question)
        except OutOfBounds as error:
            raise _fault(f"{error} on a text of {len(text):,} characters") from error
        except WorkFailed as error:
            raise _fault(f"gives up: {first_line(str(error))}") from error
        return ids, starts

    def all_located(
        self, texts: Sequence[str], *, offsets: bool = False, **options: Any
    ) -> list[tuple[list[int], list[int]]]:
        """Return what `located` gives for each text; usual tokenizers take them in one go.

        Raises as `ids`, for none of the texts by name.
        """
        if not texts or not all(map(self._in_process, texts)):
            return [self.located(text, offsets=offsets, **options) for text in texts]
        with _faults():
            found = self._tokenizer(list(texts), **options, **_OFFSETS if offsets else {})
        starts = found["offset_mapping"] if offsets else [[]] * len(texts)
        return [
            (list(ids), [start for start, _ in places])
            for ids, places in zip(found["input_ids"], starts, strict=True)
        ]

    def _in_process(self, text: str) -> bool:
        return self._usual or (self._plain and len(text) <= _LONG)

    def _here(self, question: tuple[str, dict[str, Any], bool]) -> tuple[list[int], list[int]]:
        text, options, offsets = question
        found = self._tokenizer(text, **options, **_OFFSETS if offsets else {})
        places = found["offset_mapping"] if offsets else ()
        return list(found["input_ids"]), [start for start, _ in places]


@contextmanager
def _faults() -> Iterator[None]:
    """Turn what a tokenizer's own code raises into a fault; a panic is no Exception."""
    try:
        yield
    except BaseException as error:
        foreign = isinstance(error, Exception) and not isinstance(error, MemoryError)
        if not foreign and type(error).__name__ != PANIC:
            raise
        raise _fault(f"gives up: {first_line(str(error))}") from error


def check_tokenizer_file(path: Path) -> None:
    """Raise EnvironmentFault (E212) where a tokenizer.json does not load in bounded time.

    Only one with an unusual regular expression is tried; others are loaded once, as ever.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, ValueError):
        return
    if all(pattern in _USUAL or is_plain(pattern) for pattern in patterns_in(text)):
        return
    from tokenizers import Tokenizer

    def work(name: str) -> None:
        Tokenizer.from_file(name)

    try:
        BoundedChild(work).ask(str(path))
    except OutOfBounds as error:
        raise _fault(f"{error} while '{path}' was loaded") from error
    except WorkFailed as error:
        if error.kind == PANIC:  # what else is wrong is told better where it is loaded
            raise _fault(f"'{path}' cannot be loaded: {first_line(str(error))}") from error


def patterns_in(text: str) -> Iterator[str]:
    """Yield the regular expressions in a tokenizer's JSON."""
    for found in _IN_JSON.finditer(text):
        try:
            yield str(json.loads(found[1]))
        except ValueError:
            yield "(unreadable)+"


def is_plain(pattern: str) -> bool:
    """Return whether an expression cannot backtrack much.

    Nothing in it is a group, and an alternative repeats one thing at most without an end.
    """
    at, opened, counted = 0, 0, 0
    while at < len(pattern):
        piece = _PIECE.match(pattern, at)
        if piece is None:
            return False
        often = piece["often"] or ""
        opened += often in ("*", "+")
        counted += often[:1] in ("?", "{")
        if opened > 1 or counted > 2:
            return False
        if piece["bar"]:
            opened = counted = 0
        at = piece.end()
    return True


def _patterns_in_use(backend: Any) -> Iterator[str]:
    for part in (backend.normalizer, backend.pre_tokenizer):
        if part is not None:
            yield from patterns_in(part.__getstate__().decode("utf-8", "replace"))


def first_line(text: str) -> str:
    """Return the first line of what a library says, shortened."""
    return (text.strip().splitlines() or ["without a word"])[0][:200]


def _fault(what: str) -> EnvironmentFault:
    fix = "use the tokenizer that the model's authors published, or take the text out"
    return EnvironmentFault("E212", f"the tokenizer {what}", fix=fix)
