"""A pipeline that is killed: what it had made stays, and it ends in the same bits."""

from __future__ import annotations

import copy
import json

import pytest

from llmft.api.errors import LlmftError
from llmft.engine.session import Part, resume_recipe, run_recipe

from .conftest import NAMES, TRAIN, made


class Crash(Exception):
    """Stands for a kill: nothing in llmft catches it."""


QUICK = [("collect", "while"), ("rank", "after"), ("dpo", "before")]


@pytest.mark.parametrize(
    ("stage", "when"),
    [
        pytest.param(stage, when, marks=[] if (stage, when) in QUICK else pytest.mark.slow)
        for stage in NAMES
        for when in ("before", "while", "after")
    ],
)
def test_a_run_that_crashed_at_a_stage_resumes_to_the_same_bits(
    whole, data, load, registry, tmp_path, monkeypatch, stage, when
):
    from llmft.engine.stage import StageRunner
    from llmft.engine.stage_data import StageData
    from llmft.engine.stage_sampler import StageSampler
    from llmft.runs import artifacts

    def crash_at(name: str, owner, attribute: str) -> None:
        original = getattr(owner, attribute)

        def crashing(*given, **named):
            named_by = given[0].log.stage if hasattr(given[0], "log") else given[0].name
            if named_by == stage and name == when:  # a stage, a part of it, or its folder
                raise Crash
            return original(*given, **named)

        monkeypatch.setattr(owner, attribute, crashing)

    crash_at("before", *((StageRunner, "stage_folder") if stage == "rank" else (StageData, "rows")))
    during = {"collect": (StageSampler, "sample"), "rank": (StageRunner, "reward_function")}
    crash_at("while", *during.get(stage, (StageRunner, "_fit")))
    crash_at("after", artifacts, "save_stage")  # given the stage's folder: rows are there already
    loaded = load(data, f"output_dir={tmp_path}")
    with pytest.raises(Crash):
        run_recipe(loaded)
    monkeypatch.undo()
    summary = resume_recipe(loaded)
    assert made(summary.folder) == made(whole)
    assert not (summary.folder / "replaced").exists()


def test_a_crash_after_set_aside_loses_nothing(
    finished, whole, edited, load, registry, monkeypatch, ran
):
    from llmft.runs import artifacts

    def crash(*_, **__):
        raise Crash

    changed = load(edited("rank", "task", "judge", "target", to=2))
    monkeypatch.setattr(artifacts, "save_stage", crash)
    with pytest.raises(Crash):
        resume_recipe(changed, finished)
    monkeypatch.undo()
    assert (finished / "replaced" / "rank-1" / "rows.jsonl").read_bytes() == (
        whole / "stages" / "rank" / "rows.jsonl"
    ).read_bytes()
    resume_recipe(changed, finished)
    assert {path.name for path in (finished / "replaced").glob("*")} == {"rank-1", "dpo-1"}
    results = [json.loads(p.read_text()) for p in finished.glob("stages/*/result.json")]
    assert len(results) == 4


def test_rows_that_were_tampered_with_are_refused(finished, edited, load, registry):
    rows = finished / "stages" / "rank" / "rows.jsonl"
    rows.write_text(rows.read_text().replace("say", "tell", 1))
    with pytest.raises(LlmftError, match=r"E401.*rank.*is not what the stage wrote"):
        resume_recipe(load(edited("dpo", "alignment", "beta", to=0.3)), finished)


@pytest.fixture
def stopped(edited, load, registry, tmp_path, monkeypatch) -> tuple[dict, str]:
    """The recipe of a run whose last stage was killed after its last checkpoint; where it lies."""
    from llmft.runs import artifacts

    saving = edited("dpo", "train", to={**TRAIN, "save_strategy": "steps", "save_steps": 1})
    place = f"output_dir={tmp_path}"

    def crash(folder, *rest, **named):
        if folder.name == "dpo":
            raise Crash
        return original(folder, *rest, **named)

    original = artifacts.save_stage
    monkeypatch.setattr(artifacts, "save_stage", crash)
    with pytest.raises(Crash):
        run_recipe(load(saving, place))
    monkeypatch.undo()
    return saving, place


def test_an_edit_of_a_stage_that_stopped_at_a_checkpoint_is_refused(stopped, load, registry):
    saving, place = stopped
    changed = copy.deepcopy(saving)
    changed["stages"][3]["alignment"]["beta"] = 0.3
    with pytest.raises(LlmftError, match=r"E404.*stages\.dpo\.alignment\.beta") as caught:
        resume_recipe(load(changed, place))
    assert caught.value.exit_code == 6
    resume_recipe(load(saving, place))


def test_a_stage_that_stopped_runs_again_from_its_start_where_that_is_asked(
    stopped, load, registry, tmp_path
):
    saving, place = stopped
    summary = resume_recipe(load(saving, place), part=Part(first="dpo"))
    assert (summary.folder / "replaced/dpo-1/checkpoints/step-2").is_dir()
    log = (summary.folder / "log.txt").read_text()
    assert "dpo: restarts, as asked" in log
    assert "going on" not in log
