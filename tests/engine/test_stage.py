"""Options of a stage that change how it runs, and plugins that wrap it."""

from __future__ import annotations

import json
import math
import re
import sys

import pytest

from llmft.api.errors import DataError, LlmftError, StageError
from llmft.api.train_settings import TrainSettings


def test_packing_trains_on_the_same_tokens_in_fewer_rows(run, recipe):
    recipe["stages"][0]["train"] |= {"packing": True, "max_length": 64}
    summary = run(recipe)
    stage = summary.stages["sft"]
    assert stage.after["loss"] < stage.before["loss"]
    assert stage.metrics["items_seen"] < 6 * 4  # 32 short rows fit into a few bins


def test_packing_is_refused_where_rows_would_see_each_other(run, recipe):
    recipe["stages"][0]["train"] |= {"packing": True, "max_length": 64}
    recipe["model"]["attn_implementation"] = "eager"
    with pytest.raises(LlmftError, match="cannot keep packed rows apart"):
        run(recipe)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padded_attention_gives_the_same_run(run, recipe, attention):
    packed = run(recipe).stages["sft"]
    recipe["model"]["attn_implementation"] = attention
    padded = run(recipe).stages["sft"]
    assert padded.after["loss"] == pytest.approx(packed.after["loss"], rel=1e-4)


def test_bf16_trains(run, recipe):
    recipe["stages"][0]["train"]["bf16"] = True
    stage = run(recipe).stages["sft"]
    assert stage.after["loss"] < stage.before["loss"]


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "sgd"])
def test_every_optimiser_trains(run, recipe, optim):
    recipe["stages"][0]["train"] |= {"optim": optim, "learning_rate": 0.05}
    stage = run(recipe).stages["sft"]
    assert stage.after["loss"] < stage.before["loss"]


def test_a_failing_run_says_where_and_publishes_no_adapter(run, recipe, monkeypatch):
    def poisoned(self, model, batch):
        return sum(p.sum() for p in model.parameters() if p.requires_grad) * math.nan, {}

    monkeypatch.setattr("llmft_alignments.sft.CompletionLoss.loss", poisoned)
    with pytest.raises(StageError) as caught:
        run(recipe)
    assert "not finite at step 1" in caught.value.faults[0].what
    assert "rows.jsonl:" in caught.value.faults[0].what
    folder = caught.value.run_folder
    assert not (folder / "stages" / "sft" / "adapter").exists()
    assert not (folder / "stages" / "sft" / "result.json").exists()


def test_a_data_error_keeps_its_place(run, recipe, rows_file, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text(rows_file.read_text() + '{"prompt": "x"}\n')
    recipe["stages"][0]["data"]["path"] = str(bad)
    with pytest.raises(DataError, match=r"bad\.jsonl:41: no column 'completion'"):
        run(recipe)


PLUGIN = """
import time
from llmft.api import hookimpl

@hookimpl(wrapper=True)
def llmft_run_stage(stage, context):
    started = time.monotonic()
    result = yield
    (context.folder / "seconds.txt").write_text(str(time.monotonic() - started))
    return result
"""


@pytest.fixture
def timer_plugin(tmp_path, monkeypatch):
    """A cross-cutting plugin called 'timer', installed for one test."""
    site = tmp_path / "site"
    info = site / "llmft_timer-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "llmft_timer.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llmft-timer\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[llmft.plugins]\ntimer = llmft_timer\n")
    monkeypatch.syspath_prepend(str(site))
    yield
    sys.modules.pop("llmft_timer", None)


def test_a_cross_cutting_plugin_acts_only_where_a_recipe_names_it(run, recipe, timer_plugin):
    stage = run(recipe).folder / "stages" / "sft"
    assert not (stage / "seconds.txt").exists()
    recipe["plugins"] = ["timer"]
    summary = run(recipe)
    assert float((summary.folder / "stages" / "sft" / "seconds.txt").read_text()) > 0


def test_the_log_keeps_what_libraries_say_out_of_the_terminal(run, recipe, capfd):
    folder = run(recipe).folder
    shown = capfd.readouterr()
    assert "Warning" not in shown.out + shown.err
    assert (folder / "log.txt").exists()


def test_metrics_are_json_whatever_happens(run, recipe):
    folder = run(recipe).folder
    for line in (folder / "stages" / "sft" / "metrics.jsonl").read_text().splitlines():
        for value in json.loads(line).values():
            assert not (isinstance(value, float) and not math.isfinite(value))


def test_defaults_are_written_out(run, recipe):
    import ruamel.yaml

    folder = run(recipe).folder
    resolved = ruamel.yaml.YAML(typ="safe").load(folder / "resolved.yaml")
    assert set(resolved["stages"][0]["train"]) == set(TrainSettings.model_fields)


def test_d4_rows_that_are_judged_on_are_counted_where_they_are_cut(run, recipe):
    whole = run(recipe)
    recipe["stages"][0]["train"] |= {"max_length": 9, "max_dropped": 1.0}
    cut = run(recipe)
    told = r"to compute the loss, of 8 rows: \d truncated"
    assert not re.search(told, (whole.folder / "log.txt").read_text())
    assert len(re.findall(told, (cut.folder / "log.txt").read_text())) == 1


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(run, recipe, rows_file):
    recipe["model"]["tokenizer"] = "embedded:model"
    with pytest.raises(DataError, match=rf"E114.*{rows_file.name}:\d+: the tokenizer gives the id"):
        run(recipe)


def test_answers_that_no_prompt_fits_before_are_found_before_anything_runs(run, recipe):
    recipe["stages"][0]["evaluate"]["max_new_tokens"] = 255  # the tiny model has 256 positions
    with pytest.raises(LlmftError, match=r"E045.*evaluate\.max_new_tokens.*no room for a prompt"):
        run(recipe)
    recipe["stages"][0]["evaluate"]["metrics"] = ["loss"]
    run(recipe)


def test_a_stages_seed_moves_its_order_and_its_answers_but_not_which_rows_it_has(run, recipe):
    def found(**options):
        (stage,) = recipe["stages"]
        collect = {"name": "answers", "start_from": stage["name"], "task": {"method": "collect"},
                   "data": {"method": "prompts", "path": stage["data"]["path"]}}  # fmt: skip
        stages = [{**stage, **options.get("train", {})}, {**collect, **options.get("draw", {})}]
        folder = run({**recipe, "seed": 5, "stages": stages}).folder
        lines = (folder / "stages" / stage["name"] / "metrics.jsonl").read_text().splitlines()
        losses = [one["loss"] for one in map(json.loads, lines) if one["phase"] == "train"]
        rows = json.loads((folder / "lock.json").read_text())["rows_sha256"]
        return losses, (folder / "stages" / "answers" / "rows.jsonl").read_text(), rows

    plain, drawn = found(train={"seed": 5}), found(draw={"seed": 6})
    assert plain[0] == drawn[0]
    assert plain[1] != drawn[1]
    ordered = found(train={"seed": 6})
    assert plain[0] != ordered[0]
    assert plain[2] == ordered[2]
