"""Tracker `console`: what a person wants to see while a run goes on."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from llmft.api import Field, Progress, RunInfo, StageInfo, Tracker, TrackerConfig, hookimpl
from llmft.toolkit import escaped, shown_score, terminal_width, wrapped
from llmft_trackers.console.live import LiveLine
from llmft_trackers.console.numbers import duration, named, number
from llmft_trackers.console.phases import Phase, name_of
from llmft_trackers.console.side_by_side import WIDTH, measured, plain, tables
from llmft_trackers.conversation import side_by_side, turns_of

TRAIN, SCORE, EVALUATION = "train", "score", ("evaluate", "answer")
SHOWN = 3
"""Prompts whose answers are shown, and turns of a conversation."""
LONGEST = 100
"""Characters of a prompt or an answer, where no terminal says how much fits."""


class Console(Tracker[Any]):
    """Show progress, scores and where everything was written: live on a terminal, else plain lines.

    It writes to the standard output that it finds when it is made, so the engine can send the
    chatter of libraries elsewhere during the run. Where no line moves, a long phase prints a plain
    one every 30 seconds or tenth of its way, whichever is later, and every five minutes at least.
    """

    method = "console"
    contacts = ""

    class Config(TrackerConfig):
        """Settings of the console tracker."""

        method: Literal["console"] = Field("console", description="print progress in the terminal")
        live: bool = Field(
            True, description="update one line in place on a terminal; false: print plain lines"
        )
        refresh_per_second: float = Field(
            4.0, gt=0, le=60, description="how often the live line is updated, at most"
        )

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._out = sys.stdout
        terminal = self._out.isatty() and os.environ.get("TERM") != "dumb"
        self._is_live = terminal and config.live and not os.environ.get("CI")
        self._interval = 1 / config.refresh_per_second
        self._run: RunInfo | None = None
        self._folder = Path()
        self._phases: dict[tuple[str, str], Phase] = {}
        self._line = LiveLine(self._out)
        self._drawn = 0.0
        self._heard = time.monotonic()
        self._before: dict[str, Mapping[str, float]] = {}
        self._stage = ""

    def run_started(self, run: RunInfo) -> None:
        """Say what runs, and where it writes."""
        self._run, self._folder = run, _as_typed(run.folder)
        plural = "stage" if len(run.stages) == 1 else "stages"
        self._say(f"{run.name}: {len(run.stages)} {plural} ({', '.join(run.stages)})")
        self._say(f"writing to {self._folder}")

    def stage_started(self, stage: StageInfo) -> None:
        """Say what is trained, on what, and for how long."""
        part = stage.trainable_parameters / max(stage.total_parameters, 1)
        self._set_apart(stage.name)
        self._say(f"stage {stage.name}: {stage.adapter} x {stage.alignment}")
        self._say(
            f"  trains {stage.trainable_parameters:,} of {stage.total_parameters:,}"
            f" parameters ({part:.2%})"
        )
        rows = f"{stage.rows:,} {'prompts' if stage.samples_rows else 'rows'}"
        share = f" ({stage.trained_tokens:,} trained on)" if stage.trained_tokens else ""
        self._say(f"  on {rows}, {stage.tokens:,} tokens{share}, in {stage.steps:,} steps")
        for note in stage.notes:
            self._say(f"  note: {note}")

    def progress(self, progress: Progress) -> None:
        """Move the live line, or print a plain one for each logged step and finished phase."""
        now = time.monotonic()
        if progress.phase == SCORE:
            self._set_apart(progress.stage)
            self._say(name_of(progress), *named(progress.metrics))
            return
        key = progress.stage, progress.phase
        started = key not in self._phases
        phase = self._phases.setdefault(key, Phase.of(progress, now, self._heard))
        # Steps between two logged ones may bring no metrics; the last ones stay in sight.
        phase.metrics = progress.metrics or phase.metrics
        finished = progress.done >= progress.total > 0
        left = phase.left(progress, now)
        if finished and progress.phase in EVALUATION and (progress.stage, TRAIN) in self._phases:
            self._line.clear()  # in the middle of training: the scores follow
        elif finished or (progress.logged and not self._is_live):
            ending = phase.took(now) if finished else left
            self._set_apart(progress.stage)
            self._say(name_of(progress), *named(phase.metrics), *([ending] if ending else []))
            phase.said(progress, now)
        elif self._is_live:
            if started or now - self._drawn >= self._interval:
                share = progress.done / max(progress.total, 1)
                self._line.draw(name_of(progress), share, named(phase.metrics), left)
                self._drawn = now
        elif phase.is_due(progress, now):
            self._set_apart(progress.stage)
            self._say(name_of(progress), *named(phase.metrics), *([left] if left else []))
        if finished:
            del self._phases[key]
        self._heard = now

    def scored(self, stage: str, when: str, metrics: Mapping[str, float]) -> None:
        """Keep the scores before training; after it, print both and the difference."""
        if when == "before":
            self._before[stage] = dict(metrics)
            first, *rest = [f"{name} {number(value)}" for name, value in metrics.items()] or [""]
            if first:
                self._say(f"[{stage}] before: {first}", *rest)
            return
        for line in _scores(self._before.pop(stage, {}), metrics, self._width()):
            self._say(line)

    def note(self, text: str) -> None:
        """Print a remark."""
        self._say(f"note: {text}")

    def stage_finished(self, stage: str, result: Mapping[str, Any]) -> None:
        """Say how sure scores are, how answers changed, and where the stage's output lies."""
        for line in _intervals(result.get("scores") or {}):
            self._say(line)
        width = min(self._width() or LONGEST, LONGEST)
        for line in _changed_answers(result.get("samples", ()), width):
            self._say(line)
        folder = f" in {self._folder / 'stages' / stage}" if self._run else ""
        counted = [f"{name} {plain(value)}" for name, value in measured(result).items() if value]
        said = f" ({', '.join(counted)})" if counted else ""
        made = str(result.get("produces", "adapter")).replace("_", " ")
        self._say(f"stage {stage} done: {made}{folder}{said}")

    def run_finished(self, summary: Mapping[str, Any]) -> None:
        """Say how the run ended, where everything is, and what to type next."""
        status = str(summary.get("status", "done"))
        self._line.clear()
        if self._run is None:
            return
        stages = summary.get("stages")
        width = min(self._width() or WIDTH, WIDTH)
        for line in tables(stages, width) if isinstance(stages, Mapping) else ():
            self._say(line)
        self._say("")
        took = f" in {duration(summary['seconds'])}" if "seconds" in summary else ""
        written = "everything is" if status == "done" else "what it has written is"
        self._say(f"{self._run.name} {status}{took}: {written} in {self._folder}")
        if status == "done" and (words := _next_command(stages, shlex.quote(str(self._folder)))):
            for line in _command("next: ", words, self._width()):
                self._say(line)

    def _set_apart(self, stage: str) -> None:
        """Leave a line free before what is said of another stage."""
        if stage != self._stage:
            self._say("")
            self._stage = stage

    # --- the terminal ------------------------------------------------------------------------

    def _width(self) -> int | None:
        return terminal_width(self._out)

    def _say(self, *parts: str) -> None:
        """Print a line, wrapped to the terminal; parts of it are not broken where they fit."""
        self._line.clear()
        for line in wrapped([escaped(part) for part in parts], self._width()):
            self._out.write(line + "\n")
        self._out.flush()
        self._heard = time.monotonic()


def _scores(
    before: Mapping[str, float], metrics: Mapping[str, float], width: int | None
) -> Iterator[str]:
    """Yield a table of scores before and after, or a line for each where it would be too wide."""
    first = max([len(name) for name in metrics], default=0)
    rows = []
    for name, after in metrics.items():
        old = before.get(name)
        change = "" if old is None else f"{after - old:+.4f}"
        rows.append((name, "-" if old is None else number(old), number(after), change))
    if width is not None and 2 + first + 2 + 9 + 2 + 9 + 2 + 10 > width:
        for name, old_text, after_text, change in rows:
            moved = f"{old_text} -> " if before else ""
            yield f"  {name}: {moved}{after_text}" + (f" ({change})" if change else "")
        return
    if not before:  # of a task, which trains nothing
        yield from (f"  {name:{first}}  {after_text:>9}" for name, _, after_text, _ in rows)
        return
    yield f"  {'':{first}}  {'before':>9}  {'after':>9}  {'difference':>10}"
    for name, old_text, after_text, change in rows:
        yield f"  {name:{first}}  {old_text:>9}  {after_text:>9}  {change:>10}"


def _intervals(scores: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Iterator[str]:
    """Yield for each score after training its rows and interval, and the paired difference's."""
    after, change = scores.get("after", {}), scores.get("difference", {})
    known = [name for name, score in after.items() if score.get("low") is not None]
    if known:
        yield "  with 95% intervals" + ", and the difference on the same rows" * bool(change) + ":"
    for name in known:
        moved = f", {_signed(change[name])}" if name in change else ""
        yield f"  {name} {shown_score(after[name])}{moved}"


def _signed(score: Mapping[str, Any]) -> str:
    told = shown_score(score).rpartition(" n=")[0]
    return told if told.startswith("-") else f"+{told}"


def _next_command(stages: object, folder: str) -> list[str]:
    """Return the words of the command that a run's folder is good for next; or none."""
    results = stages.values() if isinstance(stages, Mapping) else ()
    made = {result.get("produces") for result in results if isinstance(result, Mapping)}
    if not made or "policy" in made:
        return ["llmft generate", folder, '"your question"']
    scores = {"reward_model", "classifier"} & set(made)
    return ["llmft score", folder, "texts.jsonl"] if scores else []


def _command(before: str, words: Sequence[str], width: int | None) -> list[str]:
    """Return a command as a shell takes it: on one line where it fits, else continued."""
    whole = before + " ".join(words)
    if width is None or len(whole) <= width:
        return [whole]
    first, *rest = words
    return [f"{before}{first} \\", *(f"  {word} \\" for word in rest[:-1]), f"  {rest[-1]}"]


def _changed_answers(samples: Sequence[Mapping[str, Any]], width: int = LONGEST) -> list[str]:
    """Return a few prompts with the answers before and after, shortened to a line each."""
    lines: list[str] = []
    both = [(p, a) for p, a in side_by_side(samples) if {"before", "after"} <= a.keys()]
    for prompt, answers in both[:SHOWN]:
        turns = turns_of(prompt)
        if len(turns) > SHOWN:
            lines.append(f"({len(turns) - SHOWN} earlier turns)")
        lines += [_line(f"{who}: " if who else "", said, width) for who, said in turns[-SHOWN:]]
        for when, label in (("before", "  before: "), ("after", "  after:  ")):
            lines.append(_line(label, str(answers[when]["answer"]), width))
    return lines


def _line(label: str, text: str, width: int) -> str:
    """Return a label and a text as one line, cut between two words."""
    joined = label + escaped(" ".join(text.split()))
    if len(joined) <= width:
        return joined
    cut = joined[: width - 3]
    return f"{cut.rpartition(' ')[0] if ' ' in cut[width // 2 :] else cut}..."


def _as_typed(folder: Path) -> Path:
    """Return the folder as a person in the working folder would type it."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


@hookimpl
def llmft_trackers() -> list[type[Tracker[Any]]]:
    """Return the console tracker."""
    return [Console]
