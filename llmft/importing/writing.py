"""A draft as the text of a recipe, with a comment at each value that is not the command's."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llmft.api.shown_text import escaped, escaped_in_json
from llmft.importing.draft import Draft, Entry
from llmft.recipes.scalar import scalar

_PLAIN = re.compile(r"[A-Za-z0-9./][\w./@+-]*")
_WIDTH = 100
DEFAULT = "the default of "
"""How a comment begins that says where an unstated value comes from; it stands beside the value."""


def recipe_text(
    draft: Draft, name: str, origin: str, *, stage: str = "sft", notes: Sequence[str] = ()
) -> str:
    """Return the draft as YAML; every value in it is plain data that llmft reads back the same.

    notes: further lines of the comment at the top.
    """
    title = f"{draft.get('adapter.method')} on {draft.get('data.method')}, imported from {origin}."
    lines = [*comment(title), *(line for note in notes for line in comment(note))]
    lines += _block(draft, "", "", ("output_dir", "seed"))
    head = [line for line in lines if line.startswith("#")]
    rest = [line for line in lines if not line.startswith("#")]
    lines = [*head, "recipe: 1", f"name: {name}", *rest, "model:"]
    lines += _block(draft, "model", "  ")
    for block in ("model.quantization", "model.rope_scaling"):
        lines += _nested(draft, block, "  ")
    lines += ["stages:", f"  - name: {stage}"]
    for block in ("adapter", "alignment", "data", "train", "evaluate"):
        inner = [*_block(draft, block, "      "), *_nested(draft, f"{block}.columns", "      ")]
        sets = draft.sets(block) or draft.sets(f"{block}.columns")
        lines += [f"    {block}:", *inner] if sets else inner
    lines += _block(draft, "stage", "    ")
    lines += [*_trackers(draft), *_nested(draft, "push_to_hub", "")]
    return "\n".join(lines) + "\n"


def _nested(draft: Draft, block: str, indent: str) -> list[str]:
    inner = _block(draft, block, indent + "  ")
    return [f"{indent}{block.rpartition('.')[2]}:", *inner] if inner else []


def _block(draft: Draft, block: str, indent: str, keys: tuple[str, ...] | None = None) -> list[str]:
    """Return a block's own lines, its method first; `keys` are all that may be set in it."""
    entries = [entry for entry in draft.entries if entry.block == block]
    if keys is not None:
        entries = [entry for entry in entries if not entry.is_set or entry.home in keys]
    entries.sort(key=lambda entry: not entry.home.endswith(".method"))
    lines: list[str] = []
    for why, group in _together(entries):
        said = ", ".join(str(entry.flag) for entry in group if entry.flag)
        if not group[0].is_set:
            lines += comment(f"{said}: {why}" if said else why, indent)
            continue
        (entry,) = group
        name = entry.home.rpartition(".")[2]
        if why.startswith(DEFAULT):
            lines.append(f"{indent}{name}: {entry.raw or yaml(entry.value)}  # {why}")
            continue
        if why:
            lines += comment(why if not said or said in why else f"{said}: {why}", indent)
        lines += _setting(name, entry, indent)
    return lines


def _setting(name: str, entry: Entry, indent: str) -> list[str]:
    """Return a setting as lines: a list of blocks has a line for each, others are one line."""
    value = entry.value
    if isinstance(value, list) and len(value) > 1 and all(isinstance(v, Mapping) for v in value):
        return [f"{indent}{name}:", *(f"{indent}  - {yaml(each)}" for each in value)]
    return [f"{indent}{name}: {entry.raw or yaml(value)}"]


def _together(entries: list[Entry]) -> Iterator[tuple[str, list[Entry]]]:
    """Yield the entries one by one; flags that are left out for one reason come together."""
    told: set[str] = set()
    for entry in entries:
        if entry.is_set:
            yield entry.why, [entry]
        elif entry.why not in told:
            told.add(entry.why)
            yield entry.why, [e for e in entries if not e.is_set and e.why == entry.why]


def _trackers(draft: Draft) -> list[str]:
    entry = draft.entry("trackers")
    if entry is None:
        return []
    lines = comment(f"{entry.flag}: {entry.why}") if entry.why else []
    lines.append("trackers:")
    for one in entry.value:
        lines.append(f"  - {yaml(one) if len(one) > 1 else 'method: ' + yaml(one['method'])}")
    return lines


def comment(text: str, indent: str = "", width: int = _WIDTH) -> list[str]:
    """Return a text as lines of a YAML comment; it cannot end one, whatever it holds.

    YAML takes U+0085, U+2028 and U+2029 for line breaks too.
    """
    start = f"{indent}# "
    return textwrap.wrap(
        escaped(text.replace("\r\n", "\n")), width, initial_indent=start, subsequent_indent=start,
        break_on_hyphens=False,
    )  # fmt: skip


def yaml(value: Any) -> str:
    """Return a value as YAML on one line."""
    if isinstance(value, list):
        return f"[{', '.join(yaml(item) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{yaml(str(k))}: {yaml(v)}' for k, v in value.items())}}}"
    if isinstance(value, str):
        is_plain = _PLAIN.fullmatch(value) and isinstance(scalar(value), str)
        return value if is_plain else escaped_in_json(json.dumps(value, ensure_ascii=False))
    return json.dumps(value)
