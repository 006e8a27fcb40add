"""`llmft rank RUN_OR_FILE --judge NAME`: a rule or a reward model ranks, as one more rater."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llmft.api.errors import DataError, RecipeError
from llmft.ranking import judged, read_samples
from llmft.ranking.log import rater_log
from llmft.ranking.samples import Sample, rankable
from llmft.ranking.target import find_target
from llmft.recipes.scalar import scalar
from llmft.registry.registry import Registry
from llmft.runs import artifacts
from llmft.system import fsio
from llmft.system.nearest import did_you_mean
from llmft.system.quiet import captured_output

_SHAPE = "write a method or a stage: --judge exact_match, --judge length:target=5,unit=words"
REWARD_MODEL = "reward_model"


def judge(target: str, asked: str) -> str:
    """Rank all samples by a judge, into a rater's file of its own, and return the rater's name.

    asked: a finished stage of the run that made a reward model; or a reward function, which may
    have settings: `method:key=value,key=value`. What the judge said before is replaced.
    """
    found = find_target(target)
    samples = read_samples(found.samples)
    if not rankable(samples):
        what = f"there is nothing to rank in '{found.samples}': all answers are the same"
        raise DataError("E110", what, fix="collect at a higher temperature")
    name, _, settings = asked.partition(":")
    run = found.samples.resolve().parent.parent.parent
    registry = Registry.discover()
    if not settings and name in _reward_stages(run):
        scores = _by_stage(run, name, samples, registry)
    else:
        scores = _by_function(name, settings, samples, registry, _reward_stages(run))
    rater = "judge-" + re.sub(r"[^A-Za-z0-9_-]", "-", name)[:34]
    when = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    decisions = judged(samples, scores, rater).by_rater[rater].values()
    with rater_log(found.ratings, rater) as log:
        fsio.write_jsonl(log.path, [asdict(replace(one, time=when)) for one in decisions])
    return rater


def _reward_stages(run: Path) -> list[str]:
    """Return the finished stages of a run that made a reward model; none where it is no run."""
    if not (run / artifacts.RUN).is_file():
        return []
    names = artifacts.stages_of(run)
    folders = {name: run / "stages" / name for name in names}
    return [
        name
        for name, folder in folders.items()
        if (folder / artifacts.RESULT).is_file()
        and artifacts.result_of(folder)["produces"] == REWARD_MODEL
    ]


def _by_stage(
    run: Path, stage: str, samples: Sequence[Sample], registry: Registry
) -> list[list[float]]:
    """Return the reward of each answer, as `llmft score` gives it."""
    records = [
        {"prompt": s.prompt if isinstance(s.prompt, str) else list(s.prompt), "completion": text}
        for s in samples
        for text in s.completions
    ]
    with tempfile.TemporaryDirectory() as scratch, captured_output(Path(os.devnull)):
        from llmft.inference.answering import load_run
        from llmft.inference.scoring import score_file

        file = Path(scratch, "answers.jsonl")
        fsio.write_jsonl(file, records)
        found = iter(score_file(load_run(run, registry), run, file, stage=stage))
    return [[float(next(found)["score"]) for _ in sample.completions] for sample in samples]


def _by_function(
    name: str, settings: str, samples: Sequence[Sample], registry: Registry, stages: list[str]
) -> list[list[float]]:
    """Return the score of each answer by an installed reward function."""
    known = registry.names("reward")
    if name not in known:
        have = ", ".join([*known, *(f"the stage {stage}" for stage in stages)])
        what = f"--judge: no reward function is called '{name}' (have: {have})"
        raise RecipeError("E504", what, fix=did_you_mean(name, [*known, *stages]) or _SHAPE)
    cls = registry.method("reward", name)
    try:
        rule = cls(cls.Config.model_validate({"method": name, **_settings(settings)}))
    except ValidationError as error:
        # An unknown key says all about the one that should have been in its place.
        wrong = error.errors(include_url=False)
        first = min(wrong, key=lambda one: one["type"] == "missing")
        where = ".".join(map(str, first["loc"])) or name
        what = f"--judge {name}: {where}: {first['msg'][:1].lower()}{first['msg'][1:]}"
        raise RecipeError("E090", what, fix=f"llmft show {name} --kind reward") from error
    return [[rule.score(s.prompt, text, s.answers) for text in s.completions] for s in samples]


def _settings(text: str) -> dict[str, Any]:
    """Return `key=value,key=value` as settings, each value typed as in a recipe."""
    found: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, separator, value = part.partition("=")
        if not separator or not key.strip():
            raise RecipeError("E090", f"--judge: '{part}' is not key=value", fix=_SHAPE)
        found[key.strip()] = scalar(value.strip())
    return found
