"""Ranking in the terminal: plain lines, so that a pipe, a screen reader and a slow line do too."""

from __future__ import annotations

import re
import textwrap
import time
from collections.abc import Callable, Iterable
from string import ascii_lowercase

from llmft.api.shown_text import escaped
from llmft.ranking.ranking_session import Session, Shown

Say = Callable[[str], None]

HELP = """type an order, best first, such as   b > a = c   ('=' for a tie), or one of
  bad    none of the answers is good
  back   the prompt before this one
  skip   leave this prompt for later
  quit   stop; all rankings are saved"""


def rank_in_terminal(session: Session, lines: Iterable[str], say: Say) -> None:
    """Ask a rater about one sample after another, until all are rated, 'quit' or the end of input.

    lines: what the rater types. say: prints a line.
    """
    typed = iter(lines)
    skipped: set[int] = set()
    at = session.next_unrated()
    say(HELP)
    while at is not None:
        shown = session.show(at)
        say(_page(session, at, shown))
        before, start = at, time.monotonic()
        while at == before:
            line = next(typed, None)
            word = "quit" if line is None else line.strip().lower()
            if word == "quit":
                return
            if word == "back":
                at = max(at - 1, 0)
                if at == before:
                    say("this is the first prompt")
            elif word == "skip":
                skipped.add(at)
                at = session.next_unrated(at, frozenset(skipped))
            elif word in ("help", "?"):
                say(HELP)
            elif not word and shown.ranking is not None:  # looked at again, and left as it is
                at = session.next_unrated(at, frozenset(skipped))
            else:
                groups = _whole(len(shown.texts)) if word == "bad" else order_of(word, shown)
                if isinstance(groups, str):
                    say(f"{groups}; 'help' shows what can be typed")
                    continue
                seconds = time.monotonic() - start
                session.decide(shown.sample.id, groups, word == "bad", seconds)
                say(f"saved: {'all bad' if word == 'bad' else _written(groups)}")
                skipped.discard(at)
                at = session.next_unrated(at, frozenset(skipped))


def order_of(typed: str, shown: Shown) -> list[list[int]] | str:
    """Return the groups of positions that a typed order means, or what is wrong with it."""
    letters = ascii_lowercase[: len(shown.texts)]
    if not typed:
        return "type an order of the answers"
    groups: list[list[int]] = []
    seen: set[str] = set()
    for group in typed.split(">"):
        names = [name.strip() for name in group.split("=")]
        for name in names:
            if not name:
                return "there must be an answer on both sides of each '>' and '='"
            if not re.fullmatch(f"[{letters}]", name):
                return f"'{escaped(name)}' is none of the answers {_listed(letters)}"
            if name in seen:
                return f"'{name}' is there twice"
            seen.add(name)
        groups.append([letters.index(name) for name in names])
    missing = [letter for letter in letters if letter not in seen]
    if missing:
        return f"{_listed(missing)} {'is' if len(missing) == 1 else 'are'} missing"
    return groups


def _page(session: Session, at: int, shown: Shown) -> str:
    prompt = shown.sample.prompt
    turns = [{"role": "", "content": prompt}] if isinstance(prompt, str) else prompt
    left = len(session.samples) - session.rated
    lines = ["", f"--- prompt {at + 1} of {len(session.samples)}, {left} left ---"]
    for turn in turns:
        name = f"{turn['role']}: " if turn["role"] else ""
        lines.append(escaped(name + turn["content"]))
    for letter, text, copies in zip(ascii_lowercase, shown.texts, shown.copies, strict=False):
        again = f"  (given {copies} times)" if copies > 1 else ""
        body = escaped(text.strip("\n")) if text.strip() else "(an empty answer)"
        lines += ["", f"{letter}){again}", textwrap.indent(body, "   ")]
    if shown.ranking is not None:
        said = "all bad" if shown.all_bad else _written(shown.ranking)
        lines += ["", f"you said: {said} (Enter leaves it so)"]
    return "\n".join([*lines, ""])


def _written(groups: list[list[int]]) -> str:
    return " > ".join(" = ".join(ascii_lowercase[n] for n in group) for group in groups)


def _whole(count: int) -> list[list[int]]:
    return [list(range(count))]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
