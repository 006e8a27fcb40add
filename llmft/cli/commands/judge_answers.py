"""`llmft evaluate RUN --judge URL`."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmft.api.errors import CheckpointError, EnvironmentFault, RecipeError
from llmft.cli.commands.endpoint_client import client_for
from llmft.cli.commands.evaluate import progress
from llmft.cli.commands.output import printable, table
from llmft.system import fsio
from llmft.system.quiet import captured_output

if TYPE_CHECKING:
    from llmft.inference.evaluating import Asked

_WORDS = 200
_SHOWN = 3


def judged(
    asked: Asked,
    against: str,
    url: str,
    model: str | None,
    timeout: float | None,
    output: str | None,
) -> dict[str, Any]:
    """Return what a judge says of a run's answers beside those of another run, or of its base.

    timeout: seconds of waiting for the judge, all its answers together. output: a file for every
    pair; RecipeError where it is there already. Raises CheckpointError (E402) where the target is
    no run, EnvironmentFault (E213) where no reply has a verdict, or not all are there in time.
    """
    if not (Path(asked.target) / "run.json").is_file():
        what = f"'{asked.target}' is not a run folder, and a judge compares a run's answers"
        raise CheckpointError("E402", what, fix="name a folder that 'llmft run' printed")
    if output is not None:
        fsio.refuse_overwriting(Path(output))
    client = client_for(url)
    tell = progress()
    with captured_output(Path(os.devnull)):  # upstream's chatter is no part of an answer
        from llmft.inference.judging import (
            LOST,
            TEMPLATE,
            TEMPLATE_SHA256,
            TIE,
            TIMEOUT,
            WON,
            judge_runs,
        )

        client = client.within(TIMEOUT if timeout is None else timeout)
        found = judge_runs(asked, against, client, model, tell)
    pairs = [asdict(pair) | {"outcome": pair.outcome} for pair in found.pairs]
    asked_of = 2 * sum(pair.answer != pair.other for pair in found.pairs)
    told = {
        "target": asked.target,
        "against": against,
        "judge": {
            "host": found.host,
            "model": found.model,
            "template": TEMPLATE,
            "template_sha256": TEMPLATE_SHA256,
        },
        "win_rate": found.win_rate if pairs else None,
        "won": found.count(WON),
        "lost": found.count(LOST),
        "tied": found.count(TIE),
        "inconsistent": found.inconsistent,
        "unreadable": found.unreadable,
        "requests": found.asked,
        "kept": found.cached,
        "cut": found.cut,
        "output": output,
        "pairs": pairs,
    }
    if found.unfinished:
        if pairs:
            print(printable(as_text(told | {"output": None})), file=sys.stderr)
        raise EnvironmentFault(
            "E213",
            f"'{found.model}' at {found.host} has not judged all in {found.seconds:g} seconds of"
            f" waiting: {found.unfinished}",
            fix="repeat the command, which goes on from here; or wait longer: --timeout SECONDS",
        )
    if output is not None:
        fsio.write_new_jsonl(Path(output), pairs)
    if asked_of and found.unreadable == asked_of:  # ties that nobody has found
        what = f"'{found.model}' at {found.host} gave no verdict in any of {asked_of} replies"
        fix = "name a model that follows instructions: --judge-model NAME; --output has its words"
        raise EnvironmentFault("E213", what, fix=fix)
    return told


def refuse_scoring(metrics: str | None, *, base: bool) -> None:
    """Raise RecipeError (E090) where metrics are asked for beside a judge, or the base's scores."""
    if metrics is not None or base:
        option = "--metrics" if metrics is not None else "--base"
        what = f"{option} has no effect where answers are judged"
        fix = "leave it out; --against names what the run is compared with"
        raise RecipeError("E090", what, fix=fix)


def as_text(found: dict[str, Any]) -> str:
    """Return the win rate as a table, what it rests on, and a few pairs that were decided."""
    rate, judge = found["win_rate"], found["judge"]
    interval = "" if rate["low"] is None else f"[{rate['low']:.4f}, {rate['high']:.4f}]"
    lines = [
        f"{found['target']} against {found['against']}, judged by {judge['model']} at"
        f" {judge['host']}: {rate['n']:,} questions, each in both orders",
        table(
            ("win rate", "95 % interval", "won", "lost", "tied"),
            [(f"{rate['value']:.4f}", interval, *(str(found[k]) for k in ("won", "lost", "tied")))],
        ),
        f"a tie counts half; {found['inconsistent']:,} of the ties are pairs of which the orders"
        " say different things",
        f"requests: {found['requests']:,} sent, {found['kept']:,} kept from before;"
        f" prompt of the judge: sha256 {judge['template_sha256'][:16]}",
    ]
    if found["unreadable"]:
        lines.append(
            f"replies without a verdict, which make ties: {found['unreadable']:,} of"
            f" {2 * rate['n']:,}"
        )
    if found["cut"]:
        lines.append(f"texts that were too long for the judge, and cut: {found['cut']:,}")
    decided = [pair for pair in found["pairs"] if pair["outcome"] != "tie"][:_SHOWN]
    for pair in decided:
        lines.append(
            f"{pair['outcome']}: {_short(pair['prompt'])}\n  {found['target']}: "
            f"{_short(pair['answer'])}\n  {found['against']}: {_short(pair['other'])}\n"
            f"  judge: {_short(pair['replies'][0])}"
        )
    if found["output"]:
        lines.append(f"pairs: {found['output']}")
    return "\n".join(lines)


def _short(text: Any) -> str:
    said = " ".join(str(text).split())
    return said if len(said) <= _WORDS else said[:_WORDS] + " [...]"
