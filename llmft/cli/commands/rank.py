"""`llmft rank RUN_OR_FILE`."""

from __future__ import annotations

import getpass
import re
import shlex
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llmft.api.errors import DataError, Interrupted
from llmft.api.shown_text import escaped
from llmft.cli.commands.output import table
from llmft.ranking import Pairs, Ratings, agreement, combine, read_ratings, read_samples, remaining
from llmft.ranking.log import rater_log
from llmft.ranking.ranking_session import Session
from llmft.ranking.ratings import checked_rater
from llmft.ranking.samples import Sample, finished, rankable
from llmft.ranking.target import Target, find_target
from llmft.system.fsio import refuse_overwriting, write_new_jsonl

Samples = tuple[Sample, ...]


def rank(
    target: str,
    rater: str | None,
    *,
    port: int = 0,
    terminal: bool = False,
    open_page: bool = True,
    limit: int | None = None,
    as_json: bool = False,
) -> dict[str, Any]:
    """Let one person rank, on a page or in the terminal, and return how far it is then."""
    found = find_target(target)
    samples = read_samples(found.samples)
    if not rankable(samples):
        what = f"there is nothing to rank in '{found.samples}': all answers are the same"
        raise DataError("E110", what, fix="collect at a higher temperature")
    name = checked_rater(rater or _user())
    say = _to(sys.stderr if as_json else sys.stdout)
    for remark in read_ratings(found.ratings).remarks:
        say(f"note: {remark}")
    with rater_log(found.ratings, name) as log:
        session = Session(samples, name, log, limit)
        if not session.samples:
            say(f"{name} has already rated everything")
        elif terminal:
            _in_terminal(session, say)
        else:
            _on_page(session, found, samples, port, say, open_page)
    return status(target) | {"rater": name}


def status(target: str, pairs: Pairs = "all") -> dict[str, Any]:
    """Return who rated how much, how far the raters agree, and what preferences there would be."""
    found = find_target(target)
    samples = read_samples(found.samples)
    ratings = read_ratings(found.ratings)
    done = finished(samples, ratings)
    return {
        "samples": str(found.samples),
        "raters_needed": found.raters,
        "finished": done,
        "raters": [_rater(name, samples, ratings) for name in ratings.by_rater],
        "unrated": len(remaining(samples, ratings)),
        "agreement": agreement(samples, ratings),
        "counts": combine(samples, ratings, pairs).counts,
        "remarks": list(ratings.remarks),
        "go_on": found.go_on if len(done) >= found.raters else "",
    }


def export(target: str, output: str, pairs: Pairs) -> dict[str, Any]:
    """Write the preference file, and return what is in it."""
    refuse_overwriting(Path(output))
    found = find_target(target)
    samples, ratings = read_samples(found.samples), read_ratings(found.ratings)
    combined = combine(samples, ratings, pairs)
    if not combined.rows:
        what = f"the ratings of '{found.samples}' make no pair"
        raise DataError(
            "E103", what, fix=f"rank some answers first: llmft rank {shlex.quote(target)}"
        )
    write_new_jsonl(Path(output), combined.rows)
    return {"file": output, "counts": combined.counts, "remarks": list(ratings.remarks)}


def export_as_text(written: dict[str, Any]) -> str:
    """Return what was written as a line, and what became of the other pairs."""
    counts = written["counts"]
    left = [
        f"{counts[key]} {words}"
        for key, words in (
            ("tied", "ties"),
            ("undecided", "on which the raters disagree"),
            ("empty", "with an empty answer"),
            ("all_bad", "samples without a good answer"),
        )
        if counts[key]
    ]
    notes = [f"note: {remark}" for remark in written["remarks"]]
    head = f"{counts['pairs']} pairs are in '{written['file']}'"
    return "\n".join([*notes, head + (f"; left out: {', '.join(left)}" if left else "")])


def as_text(told: dict[str, Any]) -> str:
    """Return a status as text: a column for each rater, then what they have in common."""
    raters, counts = told["raters"], told["counts"]
    lines = [f"note: {remark}" for remark in told["remarks"]]
    if raters:
        rows = [(key.replace("_", " "), *(_cell(r[key]) for r in raters)) for key in _MEASURES]
        lines += [table(("", *(r["rater"] for r in raters)), rows), ""]
    for r in raters:
        if r["of_other_samples"]:
            lines.append(f"note: {r['of_other_samples']} of {r['rater']}'s are of other samples")
    to_rank = counts["samples"] - counts["identical"]
    by_two = f"{counts['rated_by_two']} by two or more"
    lines.append(f"{counts['rated']} of {to_rank} samples are rated, {by_two}")
    if counts["identical"]:
        lines.append(f"{counts['identical']} have only equal answers: there is nothing to rank")
    if told["agreement"] is not None:
        alpha = f"{told['agreement']:.3f}"
        lines.append(f"agreement: {alpha} (Krippendorff's alpha; 1 perfect, 0 as by chance)")
    lines.append(f"preferences: {counts['pairs']} pairs")
    wanted, done = told["raters_needed"], told["finished"]
    if len(done) < wanted:
        people = "1 person" if wanted == 1 else f"{wanted} people"
        lines.append(f"it waits for {people}; finished: {', '.join(done) or 'nobody'}")
    elif told["go_on"]:
        lines.append(f"everything is rated; continue with: {told['go_on']}")
    return "\n".join(lines)


_MEASURES = ("rated", "left", "all_bad", "with_ties", "median_seconds")


def _rater(name: str, samples: Samples, ratings: Ratings) -> dict[str, Any]:
    own = ratings.by_rater[name]
    ids = {sample.id for sample in rankable(samples)}
    decisions = [decision for item, decision in own.items() if item in ids]
    ranked = [decision for decision in decisions if not decision.all_bad]
    times = [decision.seconds for decision in decisions]
    return {
        "rater": name,
        "rated": len(decisions),
        "left": len(remaining(samples, ratings, name)),
        "all_bad": len(decisions) - len(ranked),
        "with_ties": sum(len(d.ranking) < sum(map(len, d.ranking)) for d in ranked),
        "median_seconds": round(statistics.median(times), 1) if times else None,
        "of_other_samples": len(own) - len(decisions),
    }


def _cell(value: Any) -> str:
    return "" if value is None else str(value)


def _on_page(
    session: Session,
    found: Target,
    samples: Samples,
    port: int,
    say: Callable[[str], None],
    open_page: bool,
) -> None:
    from llmft.ranking.requests import Desk
    from llmft.ranking.serving import serve

    def agreed() -> float | None:
        return agreement(samples, read_ratings(found.ratings))

    def go_on() -> str:
        done = finished(samples, read_ratings(found.ratings))
        return found.go_on if len(done) >= found.raters else ""

    serve(Desk(session, go_on, agreed), found.ratings, port, say, open_page=open_page)


def _in_terminal(session: Session, say: Callable[[str], None]) -> None:
    from llmft.ranking.terminal import rank_in_terminal
    from llmft.system.signals import leave_on_signal

    try:
        with leave_on_signal():
            rank_in_terminal(session, _typed(), say)
    except Interrupted as stop:
        if stop.exit_code != 130:  # Ctrl-C is one of the ways to end, and nothing is lost by it
            raise
        say("")


def _typed() -> Iterator[str]:
    """Yield what is typed, or piped in, line by line, with a prompt before each."""
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        yield line


def _to(stream: Any) -> Callable[[str], None]:
    def say(text: str) -> None:
        print(escaped(text), file=stream, flush=True)

    return say


def _user() -> str:
    try:
        return re.sub(r"[^A-Za-z0-9_-]", "_", getpass.getuser())[:40].lstrip("-") or "me"
    except (OSError, KeyError):
        return "me"
