"""Tracker `console`: what a person wants to see while a run goes on."""

from __future__ import annotations

import atexit
import math
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llmft.api import Field, Progress, RunInfo, StageInfo, Tracker, TrackerConfig, hookimpl
from llmft.toolkit import escaped
from llmft_trackers.side_by_side import measured, plain, tables

if TYPE_CHECKING:
    from rich.progress import Progress as Live


class Console(Tracker[Any]):
    """Show progress, scores and where everything was written: live on a terminal, else plain lines.

    It writes to the standard output that it finds when it is made, so the engine can send the
    chatter of libraries elsewhere during the run.
    """

    method = "console"
    contacts = ""

    class Config(TrackerConfig):
        """Settings of the console tracker."""

        method: Literal["console"] = Field("console", description="tell the terminal")
        live: bool = Field(
            True, description="keep one moving line on a terminal; false prints plain lines there"
        )
        refresh_per_second: float = Field(
            4.0, gt=0, le=60, description="how often the moving line is drawn, at most"
        )

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._out = sys.stdout
        terminal = self._out.isatty() and os.environ.get("TERM") != "dumb"
        self._is_live = terminal and config.live and not os.environ.get("CI")
        self._interval = 1 / config.refresh_per_second
        self._run: RunInfo | None = None
        self._folder = Path()
        self._phase: tuple[str, str] | None = None
        self._began = self._drawn = 0.0
        self._metrics: Mapping[str, float] = {}
        self._live: Live | None = None
        self._before: dict[str, Mapping[str, float]] = {}

    def run_started(self, run: RunInfo) -> None:
        """Say what runs, and where it writes."""
        self._run, self._folder = run, _as_typed(run.folder)
        plural = "stage" if len(run.stages) == 1 else "stages"
        self._say(f"{run.name}: {len(run.stages)} {plural} ({', '.join(run.stages)})")
        self._say(f"writing to {self._folder}")

    def stage_started(self, stage: StageInfo) -> None:
        """Say what is trained, on what, and for how long."""
        share = stage.trainable_parameters / max(stage.total_parameters, 1)
        self._say("")
        self._say(f"stage {stage.name}: {stage.adapter} x {stage.alignment}")
        self._say(
            f"  trains {stage.trainable_parameters:,} of {stage.total_parameters:,}"
            f" parameters ({share:.2%})"
        )
        self._say(
            f"  on {stage.rows:,} rows, {stage.tokens:,} tokens"
            f" ({stage.trained_tokens:,} learnt), in {stage.steps:,} steps"
        )
        for note in stage.notes:
            self._say(f"  note: {note}")

    def progress(self, progress: Progress) -> None:
        """Move the live line, or print a plain one for each logged step and finished phase."""
        now = time.monotonic()
        started = (progress.stage, progress.phase) != self._phase
        if started:
            self._stop()
            self._phase, self._began = (progress.stage, progress.phase), now
            self._metrics = {}
        # Steps between two logged ones bring no metrics; the last ones stay in sight.
        self._metrics = progress.metrics or self._metrics
        finished = progress.done >= progress.total > 0
        if self._is_live and (started or now - self._drawn >= self._interval):
            self._draw(progress, now)
        if finished or (progress.logged and not self._is_live):
            self._say(f"[{progress.stage}] {_plain(progress, self._metrics, now - self._began)}")
        if finished:
            self._phase = None

    def scored(self, stage: str, when: str, metrics: Mapping[str, float]) -> None:
        """Keep the scores before training; after it, print both and the difference."""
        if when == "before":
            self._before[stage] = dict(metrics)
            self._say(f"[{stage}] before: {_numbers(metrics)}")
            return
        before = self._before.pop(stage, {})
        width = max([len(name) for name in metrics], default=0)
        self._say(f"  {'':{width}}  {'before':>9}  {'after':>9}  {'difference':>10}")
        for name, after in metrics.items():
            old = before.get(name)
            change = "" if old is None else f"{after - old:+.4f}"
            first = "-" if old is None else _number(old)
            self._say(f"  {name:{width}}  {first:>9}  {_number(after):>9}  {change:>10}")

    def note(self, text: str) -> None:
        """Print a remark."""
        self._say(f"note: {text}")

    def stage_finished(self, stage: str, result: Mapping[str, Any]) -> None:
        """Say how answers changed, and where the stage's output lies."""
        for line in _changed_answers(result.get("samples", ())):
            self._say(line)
        folder = f" in {self._folder / 'stages' / stage}" if self._run else ""
        counted = [f"{name} {plain(value)}" for name, value in measured(result).items() if value]
        said = f" ({', '.join(counted)})" if counted else ""
        self._say(f"stage {stage} done: {result.get('produces', 'adapter')}{folder}{said}")

    def run_finished(self, summary: Mapping[str, Any]) -> None:
        """Say how the run ended, where everything is, and what to type next."""
        status = str(summary.get("status", "done"))
        self._stop()
        if self._run is None:
            return
        stages = summary.get("stages")
        for line in tables(stages) if isinstance(stages, Mapping) else ():
            self._say(line)
        self._say("")
        took = f" in {_duration(summary['seconds'])}" if "seconds" in summary else ""
        self._say(f"{self._run.name} {status}{took}: everything is in {self._folder}")
        if status == "done" and (command := _next_command(stages, shlex.quote(str(self._folder)))):
            self._say(f"next: {command}")

    # --- the terminal ------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        self._stop()
        self._out.write(escaped(text) + "\n")
        self._out.flush()

    def _draw(self, progress: Progress, now: float) -> None:
        if self._live is None:
            self._live = _live_line(self._out)
            label = escaped(f"[{progress.stage}] {progress.phase}")
            self._live.add_task(label, total=progress.total or None, numbers="", left="")
            self._live.start()
            # A run that dies must not leave the cursor hidden.
            atexit.register(self._stop)
        self._live.update(
            self._live.task_ids[0],
            completed=progress.done,
            total=progress.total or None,
            numbers=escaped(_short(self._metrics)),
            left=_left(progress, now - self._began),
        )
        self._live.refresh()
        self._drawn = now

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
            atexit.unregister(self._stop)


def _next_command(stages: object, folder: str) -> str | None:
    """Return what a run's folder is good for next, by what its stages made; None: no command."""
    results = stages.values() if isinstance(stages, Mapping) else ()
    made = {result.get("produces") for result in results if isinstance(result, Mapping)}
    if not made or "policy" in made:
        return f'llmft generate {folder} "your question"'
    return f"llmft score {folder} texts.jsonl" if "reward_model" in made else None


def _changed_answers(samples: Sequence[Mapping[str, Any]], most: int = 3) -> list[str]:
    """Return a few prompts with the answers before and after, shortened to a line each."""
    given: dict[str, dict[str, str]] = {}
    for sample in samples:
        given.setdefault(str(sample["prompt"]), {})[sample["when"]] = str(sample["answer"])
    both = [(prompt, a) for prompt, a in given.items() if {"before", "after"} <= a.keys()]
    lines = []
    for prompt, answers in both[:most]:
        lines += [_line(prompt), f"  before: {_line(answers['before'])}"]
        lines += [f"  after:  {_line(answers['after'])}"]
    return lines


def _line(text: str, width: int = 90) -> str:
    joined = " ".join(text.split())
    return joined if len(joined) <= width else joined[: width - 3] + "..."


def _as_typed(folder: Path) -> Path:
    """Return the folder as a person in the working folder would type it."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def _live_line(out: Any) -> Live:
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}", markup=False),
        TextColumn("{task.fields[left]}", markup=False),
        console=RichConsole(file=out, markup=False, highlight=False),
        transient=True,
        auto_refresh=False,  # no thread: drawing is throttled where progress is heard
        redirect_stdout=False,
        redirect_stderr=False,
    )


def _plain(progress: Progress, metrics: Mapping[str, float], seconds: float) -> str:
    parts = [f"{progress.phase} {progress.done}/{progress.total}", _numbers(metrics)]
    parts.append(_left(progress, seconds) or f"in {_duration(seconds)}")
    return "  ".join(part for part in parts if part)


def _numbers(metrics: Mapping[str, float]) -> str:
    return "  ".join(_named(name, value) for name, value in metrics.items())


def _short(metrics: Mapping[str, float]) -> str:
    """Return what fits on a line of 80 columns beside a bar: three numbers, without the rate."""
    shown = [name for name in metrics if name != "learning_rate"][:3]
    return "  ".join(_named(name, metrics[name]) for name in shown)


def _named(name: str, value: float) -> str:
    if name == "tokens_per_second":
        return f"{value:,.0f} tokens/s"
    return f"{name} {_number(value)}"


def _number(value: float) -> str:
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}" if math.isfinite(value) else str(value)
    return f"{value:.4f}" if abs(value) >= 0.001 or value == 0 else f"{value:.2e}"


def _left(progress: Progress, seconds: float) -> str:
    """Return the time left by the pace so far; nothing before the first and after the last unit."""
    if not 0 < progress.done < progress.total or seconds <= 0:
        return ""
    return f"{_duration(seconds / progress.done * (progress.total - progress.done))} left"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@hookimpl
def llmft_trackers() -> list[type[Tracker[Any]]]:
    """Return the console tracker."""
    return [Console]
