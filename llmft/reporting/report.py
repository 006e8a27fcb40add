"""`report.html`: a run on one page, which asks for nothing and runs nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmft import __version__
from llmft.recipes.secret import masked
from llmft.reporting import curves, samples
from llmft.reporting.curves import Curve, number
from llmft.reporting.run_facts import RunFacts, StageFacts, run_facts
from llmft.runs.artifacts import PUT_BACK
from llmft.system import fsio
from llmft.system.html_page import html_page

REPORT = "report.html"
_FIRST = (
    "loss", "reward", "kl", "rewards/accuracies", "rewards/margins", "accuracy", "learning_rate",
    "grad_norm", "entropy", "length",
)  # fmt: skip
_IN_WORDS = {
    "train_loss": "mean loss of all steps",
    "train_seconds": "time of training",
    "items_seen": "rows seen, all epochs together",
    "checkpoints": "checkpoints written",
    "checkpoint_ms": "time of a checkpoint, mean",
    "skipped_updates": "updates skipped",
}
"""What numbers of a stage are called here, in the words of the page."""
_ERROR = "_stderr"
_WHEN = ("before", "after", "difference")

STYLE = (Path(__file__).parent / "report.css").read_text("utf-8")
BODY = (Path(__file__).parent / "report.html.jinja").read_text("utf-8")


def write_report(run: Path) -> Path:
    """Write a run's report into its folder, and return the file's path.

    Raises CheckpointError as `run_facts` does.
    """
    path = run / REPORT
    facts = run_facts(run)
    with fsio.as_a_run_wrote(run, PUT_BACK):
        text = page(facts)
    fsio.write_text(path, text)
    return path


def page(facts: RunFacts) -> str:
    """Return a run's report as one HTML file."""
    return html_page(
        f"{facts.name}: report of a run",
        BODY,
        STYLE,
        run=facts,
        id=facts.folder.resolve().name,
        took=duration(facts.seconds) if facts.seconds is not None else "unknown",
        stages=[_stage(stage) for stage in facts.stages],
        notes=_notes(facts),
        environment=_environment(facts),
        recipe="\n".join(masked(line) for line in facts.recipe_text.split("\n")),
        width=curves.WIDTH,
        height=curves.HEIGHT,
        version=__version__,
        written=time.strftime("%Y-%m-%d %H:%M"),
    )


def _stage(stage: StageFacts) -> dict[str, Any]:
    result = stage.result or {}
    return {
        "name": stage.name,
        "work": stage.work,
        "trains": bool(stage.timeline.get("trainable_parameters") or result.get("before")),
        "before": "base" if stage.recipe.get("task") else "before",
        "finished": stage.result is not None,
        "produces": str(result.get("produces", "")).replace("_", " "),
        "facts": _sizes(stage),
        "scores": _scores(result),
        "curves": _curves(stage),
        "pairs": samples.pairs(stage.samples),
        "phases": [
            (str(p["phase"]), duration(float(p["seconds"])), _memory(p.get("peak_bytes")))
            for p in stage.timeline.get("phases", [])
        ],
    }


def _sizes(stage: StageFacts) -> list[tuple[str, str]]:
    told, result = stage.timeline, stage.result or {}
    found = []
    if trained := told.get("trainable_parameters"):
        total = told["total_parameters"]
        found.append(("trained parameters", f"{trained:,} of {total:,} ({trained / total:.2%})"))
    if told.get("rows"):
        found.append(("rows", f"{told['rows']:,}"))
        found.append(
            ("tokens", f"{told['tokens']:,}, of which {told['trained_tokens']:,} trained on")
        )
        found.append(("tokens in a row, mean", f"{told['tokens'] / told['rows']:.1f}"))
    if result.get("steps"):
        found.append(("steps", f"{result['steps']:,}"))
    scored = result.get("after") or {}
    for name, value in (result.get("metrics") or {}).items():
        if name.removesuffix(_ERROR) in scored:
            continue  # beside its score
        shown = duration(value) if name.endswith("_seconds") else number(value)
        shown += " ms" if name.endswith("_ms") else ""
        found.append((_IN_WORDS.get(name, name.replace("_", " ")), shown))
    return found


def _scores(result: Any) -> list[tuple[str, str, str, str, str, str]]:
    """Return of each metric its rows, values before and after, difference, and standard error."""
    metrics = result.get("metrics") or {}
    before, after = result.get("before") or {}, result.get("after") or {}
    told = result.get("scores") or {}
    rows = []
    for name, value in after.items():
        old = before.get(name)
        of = {when: (told.get(when) or {}).get(name) or {} for when in _WHEN}
        was = "" if old is None else f"{old:.4f}{_interval(of['before'])}"
        gained = "" if old is None else f"{value - old:+.4f}{_interval(of['difference'])}"
        count = of["after"].get("n")
        shown = f"{value:.4f}{_interval(of['after'])}"
        error = metrics.get(f"{name}{_ERROR}")
        told_error = "" if error is None else f"{error:.4f}"
        rows.append((name, "" if count is None else f"{count:,}", was, shown, gained, told_error))
    return rows


def _interval(score: Mapping[str, Any]) -> str:
    low, high = score.get("low"), score.get("high")
    return "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"


def _curves(stage: StageFacts) -> list[Curve]:
    names = [name for name in _FIRST if name in stage.curves]
    names += sorted(name for name in stage.curves if name not in (*_FIRST, "epoch"))
    return [curves.curve(name, [(name, stage.curves[name])]) for name in names]


def _notes(facts: RunFacts) -> list[str]:
    found = list(facts.timeline.get("notes", []))
    for entry in facts.about.get("resumed", []):
        found.append(f"resumed at {entry.get('time')}")
    if facts.about.get("smoke"):
        found.insert(0, "a smoke run: a tiny random model stood in, and its scores mean nothing")
    return [masked(str(note)) for note in found]


def _environment(facts: RunFacts) -> list[tuple[str, str]]:
    lock = facts.lock
    names = ("llmft", "python", "platform", "processor", "device", "torch_threads", "processes",
             "seed")  # fmt: skip
    rows = [(name.replace("_", " "), str(lock[name])) for name in names if name in lock]
    rows += [(n, str(v)) for n, v in (lock.get("packages") or {}).items() if v]
    model = lock.get("model") or {}
    if model.get("path"):
        rows.append(("model", str(model["path"])))
    rows += [(f"SHA-256 of {n}", str(v)[:16]) for n, v in (model.get("sha256") or {}).items()
             if n.endswith(".safetensors")]  # fmt: skip
    for stage, splits in (lock.get("rows_sha256") or {}).items():
        for n, v in (splits or {}).items():
            if n in ("train", "evaluate"):
                rows.append((f"SHA-256 of {stage}'s rows, {n}", str(v)[:16]))
            else:  # what a task reads beside rows: a file, or a package
                of = "SHA-256 of " if len(str(v)) == 64 else ""
                rows.append((f"{of}{n}, which {stage} reads", str(v)[:16]))
    rows += [
        (f"fingerprint of {s.name}", str((s.result or {}).get("fingerprint", ""))[:16])
        for s in facts.stages
        if s.result
    ]
    return rows


def duration(seconds: float) -> str:
    """Return a duration in seconds, or as minutes and hours from a minute on."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


def _memory(peak: Any) -> str:
    return f"{peak / 2**20:,.0f} MiB" if isinstance(peak, int) and peak else ""
