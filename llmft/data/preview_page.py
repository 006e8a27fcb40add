"""A preview as a page in one file, and the words that pages and terminals share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from llmft.api.shown_text import on_one_line
from llmft.data.preview import SourcePreview, StagePreview
from llmft.data.shown_rows import Part, Piece, ShownRow
from llmft.system.html_page import html_page

_MOST = 20_000
"""Characters of one text that a page holds."""


def facts(stage: StagePreview) -> list[tuple[str, str]]:
    """Return the facts of a stage that stand beside its rows, as (name, sentence)."""
    return [(name, said) for name, said in _facts(stage) if said]


def _facts(stage: StagePreview) -> Iterator[tuple[str, str]]:
    if stage.comes_from:
        yield "rows", f"made in the run, by the stage '{stage.comes_from}'"
    yield "refused", f"a run would stop here: {stage.refused.line()}" if stage.refused else ""
    if not stage.read:
        return
    yield "rows", f"{stage.read:,} read, {stage.items:,} {stage.kind} used" + _lost(stage)
    for source in stage.sources:
        yield f"source {source.name}", _of_source(source)
    yield "split", _split(stage)
    for why, count in sorted(stage.counts.items()):
        yield "cut or dropped", f"{count:,} {why} ({count / max(stage.made, 1):.1%})"
    for why, count in sorted(stage.remarks.items()):
        yield "met", f"{why}: {count:,}"
    for why, count in sorted(stage.left_out.items()):
        yield "left out", f"{count:,} {why}"
    if stage.skipped:
        yield "skipped", f"{stage.skipped:,} that cannot be used"
        for reason in stage.skipped_reasons:
            yield "skipped", reason
    if stage.tokens:
        share = f"{stage.trained_tokens:,} of them trained on ({_share(stage)})"
        asked = "the policy will be asked these, and nothing in them is trained on"
        yield "tokens", f"{stage.tokens:,}, {asked if stage.kind == 'prompts' else share}"
    if stage.lengths:
        told = ", ".join(f"{name} {value:,}" for name, value in stage.lengths.items())
        limit = f"; at most {stage.max_length:,} are kept" if stage.max_length else ""
        yield "length", f"{told} tokens{limit}"
    if stage.duplicates:
        found = stage.duplicates
        pairs = [*found.within_examples, *found.between_examples, *found.asked_examples]
        such = "; ".join(f"{one} as {other}" for one, other in pairs if one and other)
        yield "twice", found.note() + (f" ({such})" if such else "")
    if stage.held_out:
        yield "held out", f"{stage.held_out:,} rows, to score on"
    if stage.held_out_skipped:
        yield "held out", f"{stage.held_out_skipped:,} skipped that cannot be used"
        for reason in stage.held_out_reasons:
            yield "held out", f"skipped: {reason}"
    yield from _unread(stage)
    for note in stage.notes:
        yield "note", note


def _of_source(source: SourcePreview) -> str:
    said = [f"{source.read:,} read, {source.drawn:,} rows of the stage"]
    if source.drawn > source.rows:
        said[0] += f" ({source.rows:,}, {source.drawn / source.rows:.3g} times)"
    share = source.trained_tokens / max(source.tokens, 1)
    said.append(f"{source.tokens:,} tokens, {share:.1%} trained on")
    said += [f"{count:,} {why}" for why, count in sorted(source.counts.items())]
    said += [f"{count:,} left out: {why}" for why, count in sorted(source.left_out.items())]
    if source.skipped:
        said.append(f"{source.skipped:,} skipped")
    if source.repeats:
        said.append(f"{source.repeats:,} repeat another row")
    if source.held_out:
        said.append(f"{source.held_out:,} held out")
    if source.unread:
        said.append(f"not read: {', '.join(map(on_one_line, source.unread))}")
    return "; ".join(said)


def _unread(stage: StagePreview) -> Iterator[tuple[str, str]]:
    splits = list(stage.unread)
    same = len({tuple(columns) for columns in stage.unread.values()}) == 1
    for split in splits[:1] if same else splits:
        listed = ", ".join(f"'{on_one_line(name)}'" for name in stage.unread[split])
        where = "" if same and splits[1:] else f" of the {split} rows"
        yield "not read", f"{listed}: columns{where} that nobody looks at"


def _lost(stage: StagePreview) -> str:
    said = ""
    if stage.dropped:
        said += f", {stage.dropped:,} dropped"
    if stage.cut:
        said += f", {stage.cut:,} cut"
    return said


def _split(stage: StagePreview) -> str:
    if stage.split_rows is None:
        return ""
    if not stage.split_rows:
        return "each conversation is one row, trained on whole"
    return f"{stage.split_rows:,} conversations are split: a row for each turn that is trained on"


def _share(stage: StagePreview) -> str:
    return f"{stage.trained_tokens / max(stage.tokens, 1):.1%}"


def headline(row: ShownRow) -> str:
    """Return why a row is shown, where it came from, and how long it is."""
    parts = [", ".join(row.picked), row.origin or "a row without a place"]
    if row.turn:
        parts.append(f"turn {row.turn}")
    if row.piece:
        parts.append(f"piece {row.piece}")
    tokens = sum(part.tokens for part in row.parts)
    if len(row.parts) == 1 and tokens:
        parts.append(f"{tokens:,} tokens, {row.parts[0].trained_tokens:,} trained on")
    if row.lost:
        whole = row.whole_tokens
        parts.append(row.lost + (f", of {whole:,} tokens" if whole and whole > tokens else ""))
    return ": ".join([parts[0], "; ".join(parts[1:])])


def shortened(pieces: Sequence[Piece], most: int) -> list[Piece]:
    """Return pieces of so many characters at most: the middle of what is longer is left out."""
    size = sum(len(piece.text) for piece in pieces)
    if size <= most:
        return list(pieces)
    half = most // 2
    gap = Piece(f"\n[... {size - 2 * half:,} characters are not shown ...]\n")
    return [*_first(pieces, half), gap, *reversed(list(_first(pieces[::-1], half, end=True)))]


def _first(pieces: Sequence[Piece], most: int, *, end: bool = False) -> Iterator[Piece]:
    for piece in pieces:
        if most <= 0:
            return
        text = piece.text[-most:] if end else piece.text[:most]
        most -= len(text)
        yield replace(piece, text=text)


_STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1c1e21; --dim: #5c636b; --line: #d9dde2;
  --card: #f7f8fa; --learnt: #d3f2dc; --learnt-text: #0b4a20; --bar: #5b8def; --bad: #a11;
  --system: #7a5a00; --user: #00617a; --assistant: #2f4fb8; --tool: #a1361b; --special: #8a2a8c; }
@media (prefers-color-scheme: dark) { :root { --back: #15171a; --text: #e4e7ea; --dim: #9aa3ad;
  --line: #343a41; --card: #1d2024; --learnt: #123d22; --learnt-text: #a9efbf; --bar: #5b8def;
  --bad: #ff8a80; --system: #e0bd62; --user: #6fcbe3; --assistant: #9db4ff; --tool: #f0997d;
  --special: #e29ae4; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 70rem; background: var(--back);
  color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0 0 .3rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; border-top: 1px solid var(--line);
  padding-top: 1rem; }
h3 { font-size: .9rem; font-weight: 600; margin: 0; padding: .4rem .7rem; color: var(--dim);
  overflow-wrap: anywhere; }
table { border-collapse: collapse; }
th, td { text-align: left; vertical-align: top; padding: .15rem .8rem .15rem 0; font-weight: normal;
  overflow-wrap: anywhere; }
th { color: var(--dim); white-space: nowrap; }
.num { text-align: right; font-variant-numeric: tabular-nums; }
meter { width: 14rem; }
.bad td { color: var(--bad); font-weight: 600; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  margin: .8rem 0; }
h4 { font-size: .8rem; font-weight: 600; margin: 0; padding: .3rem .7rem; color: var(--dim);
  border-top: 1px solid var(--line); }
pre { margin: 0; padding: .6rem .7rem; white-space: pre-wrap; overflow-wrap: anywhere;
  font: 13px/1.55 ui-monospace, monospace; border-top: 1px solid var(--line); }
.system { color: var(--system); } .user { color: var(--user); } .tool { color: var(--tool); }
.assistant { color: var(--assistant); } .special { color: var(--special); }
.learnt { background: var(--learnt); color: var(--learnt-text); }
.learnt.special { color: var(--special); }
.dim, .template { color: var(--dim); }
.key span { margin-right: .8rem; padding: 0 .2rem; }
"""

_BODY = """<h1>{{ heading }}</h1>
<p class="dim">Rows as they are trained on, with special tokens.</p>
<p class="key"><span class="learnt">trained on</span><span class="special">special token</span>
{% for role in roles %}<span class="{{ role }}">{{ role }}</span>{% endfor %}</p>
{% for stage in stages %}
<h2>{{ stage.name }}: {{ stage.method }}{% if stage.data %} on {{ stage.data }}{% endif %}</h2>
<table>
{% for name, said in facts(stage) %}
<tr{% if name == 'refused' %} class="bad"{% endif %}><th>{{ name }}</th><td>{{ said }}</td></tr>
{% endfor %}
</table>
{% if stage.histogram %}
<h4>lengths in tokens</h4>
<table>
{% for low, high, count in stage.histogram %}
<tr><td class="num">{{ low }} to {{ high }}</td><td class="num">{{ count }}</td>
<td><meter min="0" max="{{ most(stage) }}" value="{{ count }}"></meter></td></tr>
{% endfor %}
</table>
{% endif %}
{% for row in stage.rows %}
<section>
<h3>{{ headline(row) }}</h3>
{% for part in row.parts %}
{% if part.name %}<h4>{{ part_name(part, stage.kind) }}</h4>{% endif %}
<pre>{% for piece in shortened(part.pieces) -%}
<span class="{{ mark(piece) }}">{{ piece.text }}</span>
{%- endfor %}</pre>
{% endfor %}
{% if row.answers %}<h4>right answers</h4><pre>{{ row.answers[:5] | join(' | ') }}</pre>{% endif %}
</section>
{% endfor %}
{% endfor %}
"""

ROLES = ("system", "user", "assistant", "tool")


def preview_page(name: str, stages: Sequence[StagePreview]) -> str:
    """Return the previews of a recipe's stages as one HTML page; whatever rows hold is text."""
    return html_page(
        f"{name}: preview",
        _BODY,
        _STYLE,
        heading=f"{name}: preview",
        stages=stages,
        roles=ROLES,
        facts=facts,
        headline=headline,
        part_name=part_name,
        mark=_mark,
        shortened=lambda pieces: shortened(pieces, _MOST),
        most=lambda stage: max(count for _, _, count in stage.histogram),
    )


def part_name(part: Part, kind: str) -> str:
    """Return what a part of a row is called, and how many tokens it has."""
    shared = kind == "pairs" and part.name == "prompt"
    name = "prompt, shared by both answers" if shared else part.name
    trained = f", {part.trained_tokens:,} trained on" if part.trained_tokens else ""
    return f"{name}: {part.tokens:,} tokens{trained}"


def _mark(piece: Piece) -> str:
    """Return a piece's CSS classes, out of our own words only."""
    role = piece.role if piece.role in ROLES else "template"
    kinds = [("learnt", piece.learnt), ("special", piece.special), (role, not piece.learnt)]
    return " ".join(kind for kind, holds in kinds if holds)
