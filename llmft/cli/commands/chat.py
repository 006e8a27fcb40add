"""`llmft chat RUN`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from llmft.api import SamplingParams
from llmft.api.errors import LlmftError, RecipeError
from llmft.api.shown_text import escaped
from llmft.system.quiet import captured_output

if TYPE_CHECKING:
    from llmft.inference.chatting import Conversation

_HELP = """/reset         forget the conversation; the system prompt stays
/base          let the untrained model answer the last question
/system TEXT   begin again with another system prompt; without TEXT: with none
/set KEY=VALUE temperature, top_p, top_k, max_new_tokens or seed
/help          this text
/quit          end (or Ctrl-D; Ctrl-C ends an answer)"""
_BOUNDS: dict[str, tuple[type, float, float]] = {
    "temperature": (float, 0.0, 100.0), "top_p": (float, 1e-6, 1.0), "top_k": (int, 0, 10**6),
    "max_new_tokens": (int, 1, 100_000), "seed": (int, 0, 2**31),
}  # fmt: skip


def talk(
    run: str,
    stage: str | None,
    settings: SamplingParams,
    *,
    seed: int,
    system: str,
    chat: bool,
    messages: Sequence[str],
    quiet: bool,
) -> list[dict[str, str]]:
    """Talk with a run until the lines end, and return what was said: role and content.

    messages: what is asked; empty: what a person types. quiet: print nothing.
    """
    out: Any = _Nowhere() if quiet else sys.stdout
    lines: Iterable[str] = messages or _typed(out)
    with captured_output(Path(os.devnull)):  # upstream's chatter is no part of a conversation
        from llmft.inference.chatting import Conversation, holds_conversations
        from llmft.inference.trained import trained_stage

        trained = trained_stage(
            Path(run), stage, fix="a reward model scores texts: llmft score RUN FILE"
        )
        whole = chat or holds_conversations(trained)
        talked = Conversation(trained, settings, seed, system, whole)
        if not messages:
            _ = talked.model
            kind = "" if whole else "; each question is asked alone, as in training (or: --chat)"
            _say(out, f"talking with '{trained.folder.name}' of {run}{kind}; /help\n")
        return list(_session(talked, lines, out, once=bool(messages)))


def _session(
    talked: Conversation, lines: Iterable[str], out: TextIO, *, once: bool
) -> Iterator[dict[str, str]]:
    """Yield the turns. once: an error ends it, as nobody is there to mend it."""
    for line in lines:
        line = line.strip()
        try:
            if line in ("/quit", "/exit"):
                return
            if line.startswith("/"):
                told = _command(talked, line, out)
                yield from told
            elif line:
                yield {"role": "user", "content": line}
                answer = _streamed(out, lambda *how, line=line: talked.reply(line, *how))
                yield {"role": "assistant", "content": answer}
        except LlmftError as error:
            if once:
                raise
            _say(out, f"{error.faults[0].line()}\n")


def _command(talked: Conversation, line: str, out: TextIO) -> list[dict[str, str]]:
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    if name == "/reset":
        talked.reset()
    elif name == "/base":
        _say(out, "(untrained) ")
        return [{"role": "base", "content": _streamed(out, talked.base_reply)}]
    elif name == "/system":
        talked.set_system(rest)
    elif name == "/set":
        _set(talked, rest)
    elif name == "/help":
        _say(out, f"{_HELP}\n")
    else:
        raise RecipeError("E090", f"no command '{name}'", fix="/help lists them")
    return []


def _set(talked: Conversation, text: str) -> None:
    from dataclasses import replace

    key, _, value = text.partition("=")
    key = key.strip()
    if key not in _BOUNDS:
        what = f"'{key}' is no setting of sampling"
        raise RecipeError("E090", what, fix=f"one of {', '.join(_BOUNDS)}")
    kind, least, most = _BOUNDS[key]
    try:
        number = kind(value.strip())
    except ValueError:
        number = None
    if number is None or not least <= number <= most:
        raise RecipeError("E090", f"{key} is '{value.strip()}', and {least:g} to {most:g} is meant")
    if key == "seed":
        talked.seed = number
    else:
        talked.params = replace(talked.params, **{key: number})


def _streamed(out: TextIO, ask: Callable[..., str]) -> str:
    """Return an answer, each piece of it printed as it comes; Ctrl-C ends it."""
    with _interruptible() as stopping:
        answer = ask(lambda piece: _say(out, piece), stopping)
    _say(out, "\n")
    return answer.strip()


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    asked: list[int] = []
    try:
        before = signal.signal(signal.SIGINT, lambda number, _: asked.append(number))
    except ValueError:  # not the main thread
        yield lambda: False
        return
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)


def _typed(out: TextIO) -> Iterator[str]:
    """Yield what a person types, or a pipe holds, until it ends."""
    prompt = sys.stdin.isatty() and out.isatty()
    while True:
        if prompt:
            _say(out, "> ")
        line = sys.stdin.readline()
        if not line:
            if prompt:
                _say(out, "\n")
            return
        yield line


def _say(out: TextIO, text: str) -> None:
    """Print a piece of text: whatever a model writes is shown, and steers no terminal."""
    out.write(escaped(text))
    out.flush()


class _Nowhere:
    """A stream that keeps nothing."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


def as_json(said: list[dict[str, str]]) -> dict[str, Any]:
    """Return the conversation as plain data."""
    return {"messages": said}
