"""What came of the mutants: for the terminal, and as a page of the docs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from children import OF_EXTENDED, Job
from equivalent import EQUIVALENT
from mutate import Mutant


@dataclass(frozen=True)
class Outcome:
    """What came of one mutant.

    by: the test that failed, or `time` where none ended in time. reason: why it is equivalent, if
    it is listed as that. extended: it is killed by a case that a plain run of the tests leaves out.
    """

    area: str
    file: str
    line: int
    what: str
    diff: str
    killed: bool
    by: str
    reason: str
    extended: bool = False

    @classmethod
    def of(cls, area: str, mutant: Mutant, before: bytes, job: Job) -> Outcome:
        """Return the outcome of a job that has ended."""
        diff = mutant.diff(before)
        killed = job.code != 0
        by = "time" if job.code is None else _first_failure(job.said)
        reason = "" if killed else EQUIVALENT.get((mutant.file, diff), "")
        extended = killed and OF_EXTENDED in job.said
        return cls(area, mutant.file, mutant.line, mutant.what, diff, killed, by, reason, extended)


def _first_failure(said: str) -> str:
    lines = [line for line in said.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return lines[0].split()[1] if lines else ""


def score(outcomes: Sequence[Outcome]) -> str:
    """Return how many are killed, of all and of those that are not equivalent."""
    killed = sum(one.killed for one in outcomes)
    of = [one for one in outcomes if not one.reason]
    text = f"{killed} of {len(outcomes)} killed ({killed / max(len(outcomes), 1):.1%})"
    if len(of) < len(outcomes):
        text += (
            f"; {len(outcomes) - len(of)} equivalent; {killed / max(len(of), 1):.1%} of the others"
        )
    return text


def as_text(outcomes: Sequence[Outcome]) -> str:
    """Return the score and each survivor, for the terminal."""
    lines = [score(outcomes)]
    for one in outcomes:
        if not one.killed:
            lines.append(f"\n{one.file}:{one.line} {one.what} {one.reason and '(equivalent)'}")
            lines.append(one.diff)
    return "\n".join(lines)


def as_page(
    outcomes: Sequence[Outcome],
    seed: int,
    counts: Mapping[str, int],
    fresh: tuple[int, Sequence[Outcome]] | None = None,
    note: str = "",
) -> str:
    """Return the page: the score by area, the survivors, and the equivalent ones with reasons.

    fresh: the seed and the outcomes of a sample that no test was written for. note: a text under
    the scores.
    """
    rows = []
    for area in counts:
        some = [one for one in outcomes if one.area == area]
        killed, alike = sum(o.killed for o in some), sum(bool(o.reason) for o in some)
        share = f"{killed / max(len(some) - alike, 1):.0%}"
        rows.append(f"| {area} | {counts[area]:,} | {len(some)} | {killed} | {alike} | {share} |")
    table = "\n".join(rows)
    survivors = [one for one in outcomes if not one.killed and not one.reason]
    same = [one for one in outcomes if one.reason]
    return f"""# Mutants: would the tests notice?

`python benchmarks/mutants/run.py` changes one small thing in the source (a comparison, an
operation, a constant, a `not`, a statement, a default, `min` for `max`), runs the test files
nearest to the changed file, and counts how often one of them fails. A mutant that survives shows
a line that no near test holds. Tests farther away, such as most of those of whole runs, are not
asked, nor are those that take minutes (`--slow`). A seed draws from the source as it stands: from
another version it draws other mutants.

**{score(outcomes)}**,
of {len(outcomes)} drawn by seed {seed}, as many of each area.
{_how(outcomes)}
{_fresh(*fresh) if fresh else ""}
{note and note + chr(10)}
| area | mutants there are | drawn | killed | equivalent | killed of the rest |
|---|---|---|---|---|---|
{table}

## Survivors

{_listed(survivors) or "None."}
{_survivors_of(*fresh) if fresh else ""}
## Equivalent

No test can tell these from the code.

{_listed(same) or "None."}
"""


def _how(outcomes: Sequence[Outcome]) -> str:
    """Return what a plain run of the tests alone would have killed."""
    extended = sum(one.extended for one in outcomes)
    late = sum(one.by == "time" for one in outcomes)
    plain = sum(one.killed for one in outcomes) - extended - late
    return (
        f"Of these a plain `pytest` notices {plain}, cases that only `pytest --extended` has"
        f" notice {extended}, and\nin {late} a test does not end in time."
    )


def _fresh(seed: int, outcomes: Sequence[Outcome]) -> str:
    return f"""
Of a fresh sample, {len(outcomes)} drawn by seed {seed}, no test was written for a survivor:
**{score(outcomes)}**.
{_how(outcomes)}
"""


def _survivors_of(seed: int, outcomes: Sequence[Outcome]) -> str:
    survivors = [one for one in outcomes if not one.killed and not one.reason]
    return f"""
## Survivors of the fresh sample

{_listed(survivors) or "None."}
"""


def _listed(outcomes: Sequence[Outcome]) -> str:
    blocks = []
    for one in outcomes:
        reason = f": {one.reason}" if one.reason else ""
        blocks.append(f"`{one.file}:{one.line}` {one.what}{reason}\n\n```diff\n{one.diff}\n```")
    return "\n\n".join(blocks)
