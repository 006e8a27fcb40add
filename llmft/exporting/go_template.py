"""Conversations as a Go template writes them, for Ollama: the template, and its reader.

Only what `write` makes is read: Go's text/template, with Ollama's names `.Messages`, `.Role` and
`.Content`. The tests hold the reader against Go itself where it is installed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

LAST = "eq (len (slice $.Messages $i)) 1"
_ACTION = re.compile(r'\{\{ ("(?:[^"\\]|\\.)*"|[^{}]*?) \}\}')
_ROLE = re.compile(r'eq \.Role "(\w+)"')


@dataclass(frozen=True)
class Frame:
    """What stands around the messages of a conversation.

    between: the text between a message's role and the next one's; None as the first: at the start
    of the conversation; as the second: where the answer is to be written. system: whether a system
    text is written; else it is left out. only_last: whether a person's last message is all that is
    written.
    """

    between: Mapping[tuple[str | None, str | None], str]
    system: bool = True
    only_last: bool = False


def write(frame: Frame) -> str:
    """Return the Go template that writes conversations so."""
    gap = {key: literal(text) for key, text in frame.between.items()}
    head = "{{ range $i, $_ := .Messages }}{{ $last := " + LAST + " }}"
    begin, answer = gap[None, "user"], gap["user", None]
    if frame.only_last:
        user = "{{ if $last }}" + begin + "{{ .Content }}" + answer + "{{ end }}"
        return head + '{{ if eq .Role "user" }}' + user + "{{ end }}{{ end }}"
    system = begin
    if frame.system:
        system = gap[None, "system"] + "{{ .Content }}" + gap["system", "user"]
    follows = gap["user", "assistant"]
    after = answer if answer == follows else _either("$last", answer, follows)
    more = gap["assistant", "user"]
    return (
        f'{head}{{{{ if eq .Role "system" }}}}{system}'
        f'{{{{ else if eq .Role "user" }}}}{_either("eq $i 0", begin)}{{{{ .Content }}}}{after}'
        f'{{{{ else if eq .Role "assistant" }}}}{{{{ .Content }}}}{_either("$last", "", more)}'
        "{{ end }}{{ end }}"
    )


def _either(claim: str, then: str, otherwise: str = "") -> str:
    if not then and not otherwise:
        return ""
    other = "{{ else }}" + otherwise if otherwise else ""
    return "{{ if " + claim + " }}" + then + other + "{{ end }}"


def literal(text: str) -> str:
    """Return a text as a Go template in a Modelfile holds it.

    A Modelfile drops what does not print and ends a template at three quotes; braces are Go's.
    """
    parts = re.split(r'([{}]+|"{3,}|[^\n -~]+)', text)
    return "".join("{{ " + quoted(p) + " }}" if n % 2 else p for n, p in enumerate(parts))


def quoted(text: str) -> str:
    """Return a text as a Go string in ASCII."""
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    code = ord(char)
    if 32 <= code < 127 and char not in "{}":
        return char
    return f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def run(template: str, messages: Sequence[Mapping[str, Any]]) -> str:
    """Return what a template of `write` makes of messages, as Go's text/template would."""
    root = _Block()
    stack = [root]
    for kind, word in _pieces(template):
        if kind == "text":
            stack[-1].body.append(word)
        elif word.startswith("$last := "):
            continue  # known at each message
        elif word.startswith(("range ", "if ")):
            block = _Block(word)
            stack[-1].body.append(block)
            stack.append(block)
        elif word.startswith("else"):
            # `else if` is an `if` in the else, which ends with it.
            other = _Block(word.removeprefix("else").strip(), chained=True)
            stack[-1].other = other
            stack.append(other)
        elif word == "end":
            while stack.pop().chained:
                pass
        else:
            stack[-1].body.append(_Value(word))
    return root.text(messages, None)


@dataclass
class _Value:
    word: str


@dataclass
class _Block:
    """What stands between an action and its end. other: its else. chained: it is one."""

    action: str = ""
    chained: bool = False
    body: list[Any] = field(default_factory=list)
    other: _Block | None = None

    def text(self, messages: Sequence[Mapping[str, Any]], at: int | None) -> str:
        if self.action.startswith("range "):
            return "".join(self._body(messages, n) for n in range(len(messages)))
        if not self.action or _holds(self.action.removeprefix("if "), messages, at):
            return self._body(messages, at)
        return self.other.text(messages, at) if self.other else ""

    def _body(self, messages: Sequence[Mapping[str, Any]], at: int | None) -> str:
        found = []
        for part in self.body:
            if isinstance(part, _Block):
                found.append(part.text(messages, at))
            elif isinstance(part, str):
                found.append(part)
            elif part.word == ".Content" and at is not None:
                found.append(str(messages[at]["content"]))
            else:
                raise ValueError(f"no action of ours: {part.word}")
        return "".join(found)


def _holds(claim: str, messages: Sequence[Mapping[str, Any]], at: int | None) -> bool:
    assert at is not None
    if claim == "$last":
        return at == len(messages) - 1
    if claim == "eq $i 0":
        return at == 0
    if role := _ROLE.fullmatch(claim):
        return bool(messages[at]["role"] == role[1])
    raise ValueError(f"no claim of ours: {claim}")


def _pieces(template: str) -> list[tuple[str, str]]:
    found, at = [], 0
    for action in _ACTION.finditer(template):
        found.append(("text", template[at : action.start()]))
        word = action[1]
        if word.startswith('"'):
            found.append(("text", _unquoted(word)))
        else:
            found.append(("action", word))
        at = action.end()
    return [*found, ("text", template[at:])]


def _unquoted(word: str) -> str:
    def plain(escape: re.Match[str]) -> str:
        said = escape[1]
        return chr(int(said[1:], 16)) if said[0] in "uU" else said

    return re.sub(r"\\(u[0-9a-f]{4}|U[0-9a-f]{8}|.)", plain, word[1:-1])
