"""A command line such as `python dora.py --flag value`, found in a text and cut into its flags."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace

from llmft.api.errors import Fault, Place, RecipeError
from llmft.recipes.tree import visible

_ASSIGNED = r"""(?:[A-Za-z_]\w*=(?:"[^"]*"|'[^']*'|[^\s"']*)[ ]+)*"""  # A=1 python ...
_START = re.compile(
    rf"^[ \t]*(?:\$[ ]+)?{_ASSIGNED}"
    r"(?P<launcher>(?:(?:[\w./-]+|--?[\w-]+=[^\s\"']+)[ ]+)*)"
    r"(?P<script>[\w./:-]+\.py|(?:trl|swift)[ ]+[a-z]+|trl\.scripts\.[a-z]+)(?=[ \t\r\n\\;\"']|$)"
)
_HEADING = re.compile(r"^[ \t]*#+[ \t]*(.*?)[ \t#]*$")
_TOKEN = re.compile(r"""(?:"(?:[^"\\]|\\.)*"|'[^']*'|\\[^\s]|[^\s"'\\])+""", re.DOTALL)
_CONTINUED = re.compile(r"\\[ \t]*$")
_NUMBER = re.compile(r"-\.?[0-9]")
_REDIRECTION = re.compile(r"(?:\d*|&)(?:>[>|]?|<)(?P<target>.*)", re.DOTALL)
_ENDS = ("|", "&", ";")  # of a command; what comes after it is another one
# NAME=value on a line of its own, of the whole script: not in a branch or a loop.
_SET = re.compile(
    r"""^(?:export[ ]+)?(?P<name>[A-Za-z_]\w*)=(?P<value>"[^"]*"|'[^']*'|[^\s"';&|()]*)[ \t]*$"""
)
_CHANGED = re.compile(
    r"(?:^|[\s;&|(])(?:read[ ]+(?:-\w+[ ]+)*)?([A-Za-z_]\w*)\+?=|\bread[ ]+(\w+)|\bfor[ ]+(\w+)"
)
_OPENS, _CLOSES = (
    re.compile(r"^\s*(?:if|case|for|while|until)\b"),
    re.compile(r"\b(?:fi|esac|done)\b"),
)
_PROCESSES = ("NPROC_PER_NODE", "NNODES")  # how often a command is started, where it is exported
_SECRET = re.compile(r"token|key|secret|passw", re.IGNORECASE)
_KNOWN = re.compile(r"'[^']*'|\$\{(?P<braced>[A-Za-z_]\w*)\}|\$(?P<plain>[A-Za-z_]\w*)")
_EXPR = re.compile(
    r"\$\(expr[ ]+(\d+(?:[ ]+[-+*/][ ]+\d+)*)[ ]*\)|\$\(\([ ]*(\d+(?:[ ]*[-+*/][ ]*\d+)*)[ ]*\)\)"
)
_OF_SHELL = re.compile(r"\$[\w{(@*]|`")


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag of a command: its name without dashes, its values as written, and its place."""

    name: str
    values: tuple[str, ...]
    place: Place

    def __str__(self) -> str:
        return " ".join((f"--{self.name}", *(value or "''" for value in self.values)))


@dataclass(frozen=True, slots=True)
class Command:
    """A command line: the script it starts, its flags, and the headings above it.

    launcher: what starts the script, if that has options of its own: `torchrun --nnodes 2`.
    before: that, and the variables that are set for it, as they were written.
    """

    script: str
    flags: tuple[Flag, ...]
    headings: tuple[str, ...]
    place: Place
    launcher: str = ""
    before: str = ""


def find_commands(text: str, file: str) -> list[Command]:
    """Return the command lines in a text: alone, or in a page with headings and code fences.

    A command goes on in the next line after a backslash, and where that line begins with '--'.
    Raises RecipeError with every flag that cannot be read.
    """
    lines = text.splitlines()
    commands: list[Command] = []
    headings: list[str] = []
    script = _Variables()
    number = 0
    while number < len(lines):
        line = lines[number]
        script.read(line)
        if heading := _HEADING.match(line):
            headings.append(heading[1])
        if heading or not (start := _START.match(line)):
            number += 1
            continue
        end = _end(lines, number)
        known = [script.put_into(one) for one in lines[number:end]]
        start = _START.match(known[0]) or start
        flags = _flags(lines, known, number, start.end(), end, file)
        place = Place(file, number + 1, start.start("script") + 1, line, len(start["script"]))
        before = script.put_into(_before(lines, number, line[: start.start("script")]))
        exported = " ".join(f"{name}={value}" for name, value in script.exported.items())
        launcher = _launcher(before)
        headed, said = tuple(headings), f"{before} {exported}".strip()
        script_said = start["script"].replace("trl.scripts.", "trl ")  # python -m trl.scripts.sft
        commands.append(Command(script_said, flags, headed, place, launcher, said))
        number = end
    return commands


class _Variables:
    """What a script itself sets variables to, as far as that is plain text for all the rest."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.exported: dict[str, str] = {}
        self._depth = 0

    def read(self, line: str) -> None:
        """Note what a line sets; what a branch, a loop or another program sets is forgotten.

        So is what may be a secret.
        """
        found = _SET.match(line)
        value = found["value"] if found else ""
        plain = "`" not in value and ("$" not in value or value.startswith("'"))
        if found and plain and not self._depth and not _SECRET.search(found["name"]):
            self.values[found["name"]] = value.strip("'\"")
            if found["name"] in _PROCESSES and line.startswith("export"):
                self.exported[found["name"]] = self.values[found["name"]]
            return
        self._depth = max(0, self._depth + bool(_OPENS.match(line)) - len(_CLOSES.findall(line)))
        for names in _CHANGED.findall(line):
            for name in names:
                self.values.pop(name, None)

    def put_into(self, line: str) -> str:
        """Return a line with the variables that are known, and sums of whole numbers."""

        def value(found: re.Match[str]) -> str:
            name = found["braced"] or found["plain"]
            return self.values.get(name, found[0]) if name else found[0]

        return _EXPR.sub(_sum, _KNOWN.sub(value, line)) if "$" in line else line


def _sum(found: re.Match[str]) -> str:
    """Return the whole number that `expr` or `$((...))` makes of others: / rounds down."""
    words = re.findall(r"\d+|[-+*/]", found[1] or found[2])
    terms, signs = [int(words[0])], []
    for operator, word in zip(words[1::2], words[2::2], strict=True):
        if operator == "*":
            terms[-1] *= int(word)
        elif operator == "/":
            if not int(word):
                return found[0]
            terms[-1] //= int(word)
        else:
            signs.append(operator)
            terms.append(int(word))
    rest = zip(signs, terms[1:], strict=True)
    return str(terms[0] + sum(term if sign == "+" else -term for sign, term in rest))


def _before(lines: list[str], number: int, before: str) -> str:
    """Return what stands before the script, also in lines above that a backslash joins to it."""
    said = before.strip()
    while number and _CONTINUED.search(lines[number - 1]):
        number -= 1
        said = f"{_CONTINUED.sub('', lines[number]).strip()} {said}"
    return said


def _launcher(before: str) -> str:
    """Return what starts the script; '' without options of its own."""
    # Variables are not repeated: one may be a secret. `python -u` is nothing to speak of.
    said = re.sub(rf"^(?:\$[ ]+)?{_ASSIGNED}", "", before).strip()
    return said if " --" in said else ""


def _end(lines: list[str], first: int) -> int:
    """Return the number of the line after a command's last."""
    number = first + 1
    while number < len(lines):
        going_on = _CONTINUED.search(lines[number - 1]) and not lines[number].startswith("```")
        if not going_on and not lines[number].lstrip().startswith("--"):
            break
        number += 1
    return number


def _flags(
    lines: list[str], known: list[str], first: int, column: int, end: int, file: str
) -> tuple[Flag, ...]:
    found: list[tuple[str, list[str], Place]] = []
    faults: list[Fault] = []
    for token, place in _tokens(lines, known, first, column, end, file, faults):
        if token.startswith("-") and not _NUMBER.match(token):
            name, equals, value = token.lstrip("-").partition("=")
            found.append((name.replace("-", "_"), _unquoted(value) if equals else [], place))
        elif found:
            found[-1][1].extend(_unquoted(token))
        else:
            what = f"'{visible(token)[:60]}' belongs to no flag"
            is_file = token.endswith((".yaml", ".yml"))
            fix = "import that file, with --trainer" if is_file else "write --name value"
            faults.append(Fault("E091", what, fix, place=place))
        if variable := _OF_SHELL.search(re.sub(r"'[^']*'", "", token)):
            what = f"what '{visible(token)[:60]}' stands for, only the shell knows"
            place = replace(place, column=place.column + token.find(variable[0]))
            faults.append(Fault("E051", what, "write the value, or leave it out", place=place))
    names = [name for name, _, _ in found]
    for index, (name, _, place) in enumerate(found):
        if name in names[:index]:
            what = f"--{visible(name)[:60]} is given twice"
            faults.append(Fault("E091", what, "keep one of the two", place=place))
    if faults:
        raise RecipeError.of(faults)
    return tuple(Flag(name, tuple(values), place) for name, values, place in found)


def _tokens(
    lines: list[str],
    known: list[str],
    first: int,
    column: int,
    end: int,
    file: str,
    faults: list[Fault],
) -> Iterator[tuple[str, Place]]:
    """Yield the script's words with their places; comments, pipes and redirections are no words.

    known: the command's lines with the values of variables, in place of `lines[first:end]`.
    """
    into_file = False  # the next word is the file of a '>' before it
    for number in range(first, end):
        line = lines[number]
        code, at = _CONTINUED.sub("", known[number - first]), column if number == first else 0
        words = list(_TOKEN.finditer(code, at))
        if comment := next((word for word in words if word.group().startswith("#")), None):
            code, words = code[: comment.start()], words[: words.index(comment)]
        if mark := next((mark for mark in "\"'" if mark in _TOKEN.sub("", code[at:])), None):
            place = Place(file, number + 1, line.rfind(mark) + 1, line)
            faults.append(Fault("E091", "a quote is not closed in this line", "", place=place))
        for word in words:
            token = word.group()
            if token.startswith(_ENDS) and not token.startswith("&>"):
                return
            if redirection := _REDIRECTION.match(token):
                into_file = not redirection["target"]
            elif into_file:
                into_file = False
            elif plain := token.rstrip(";"):
                at_column = min(word.start(), max(0, len(line) - 1)) + 1
                yield plain, Place(file, number + 1, at_column, line, len(plain))
            if token.endswith(";"):
                return


def _unquoted(token: str) -> list[str]:
    return shlex.split(token) if token else [""]
