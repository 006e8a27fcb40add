"""The part of docs/reliability.md that is measured, between two marks in the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from canaries import PLANTED, Canaries
from curves import Curves
from fuzz import SLOW, Fuzzed
from tally import SHOWN, Tally

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


@dataclass
class Measured:
    """All that was measured in one go."""

    tally: Tally
    fuzzed: Fuzzed
    canaries: Canaries
    command: str
    minutes: float
    curves: list[Curves] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    sampled: list[str] = field(default_factory=list)

    @property
    def failures(self) -> list[str]:
        """What is not as it is promised; raw runs promise nothing."""
        ours = [o for o in self.tally.outcomes if not o.method.startswith("raw")]
        unlike = [o for o in ours if o.result != "exact"]
        wrong = [f"{o.method}, {o.fault} at {o.event}: {o.result}" for o in unlike] + self.wrong
        wrong += [f"recipe {text}" for text in self.fuzzed.wrong]
        if self.fuzzed.recipes and (p99 := self.fuzzed.quantile(0.99)) >= SLOW:
            wrong.append(f"p99 of loading a recipe is {p99:.0f} ms")
        return wrong + [f"a secret: {text}" for text in self.canaries.found]


def table(measured: Measured) -> str:
    """Return the figures as Markdown."""
    tally = measured.tally
    lines = [
        "| fault | llmft: faults | ended bit-exactly | raw TRL: faults | ended bit-exactly |",
        "|---|---|---|---|---|",
    ]
    totals = [0, 0, 0, 0]
    for fault, shown in SHOWN.items():
        counts = [tally.by_fault(fault, raw) for raw in (False, True)]
        row = [number for counted in counts for number in (sum(counted.values()), counted["exact"])]
        totals = [a + b for a, b in zip(totals, row, strict=True)]
        lines.append(_row(shown, row))
    lines.append(_row("all", totals))
    fuzzed, canaries = measured.fuzzed, measured.canaries
    ours = [m for m in tally.methods if not m.startswith("raw")]
    alone = [m for m in ours if " + " in m]
    several = "; ".join(m for m in ours if m not in alone)
    lines += [
        "",
        f"- Methods: {len(alone)}, an adapter with an alignment each, struck at the file-system"
        " events of a run with two checkpoints.",
    ]
    if several:
        lines.append(f"- Runs of several stages, struck inside the stages and between: {several}.")
    lines += [f"- {text}." for text in measured.sampled]
    results = Counter(o.result for o in tally.outcomes if o.method.startswith("raw"))
    if results:
        told = ", ".join(f"{result}: {n}" for result, n in results.most_common())
        lines.append(
            f"- The raw loop (SFT of a LoRA, the same model, rows and saves): {told}. A dash: it"
            f" has no counterpart; TRL {version('trl')} has no PPO and knows no stages."
        )
    if fuzzed.recipes:
        lines.append(
            f"- Changed recipes loaded: {fuzzed.recipes:,}; tracebacks: {len(fuzzed.wrong)}; half"
            f" took less than {fuzzed.quantile(0.5):.1f} ms, 99 in 100 less than"
            f" {fuzzed.quantile(0.99):.1f} ms, the slowest {max(fuzzed.milliseconds):.0f} ms"
            " (of CPU)."
        )
    lines.append(
        f"- Secrets planted: {len(PLANTED)}; searched: {canaries.files:,} files,"
        f" {canaries.bytes / 1e6:,.0f} MB; found: {len(canaries.found)}."
    )
    lines += [f"- {c.name}: {len(c.kills)} kills in one run: {c.verdict}." for c in measured.curves]
    lines += ["", f"Measured by `{measured.command}` in {measured.minutes:.0f} minutes."]
    return "\n".join(lines)


def _row(name: str, numbers: Sequence[int]) -> str:
    """Return a row of the table; a dash where there was no fault."""
    cells = [f"{n:,}" if numbers[i // 2 * 2] else "–" for i, n in enumerate(numbers)]
    return f"| {name} | {' | '.join(cells)} |"


def into_page(page: Path, text: str) -> None:
    """Put the figures between the marks of a page."""
    before, _, rest = page.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", "utf-8")
